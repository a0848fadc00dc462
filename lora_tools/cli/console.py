"""What a person sees: results on stdout, progress on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import click
from tqdm import tqdm

from lora_tools.engine import Engine

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Visible:
    """An engine with a bar on stderr for whatever takes it longer than a second."""

    engine: Engine

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield what the engine yields."""
        known = tuple(jobs)
        results = self.engine.map(task, known)
        return iter(
            tqdm(
                results,
                total=len(known),
                desc=task.__name__,
                unit="module",
                delay=1,
                leave=False,
                disable=not sys.stderr.isatty(),
            )
        )


def say(text: str) -> None:
    """Tell a person something on stderr."""
    click.echo(text, err=True)
