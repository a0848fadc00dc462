"""What a person sees: results on stdout, progress on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import click

from lora_tools.engine import Engine
from lora_tools.engine.base import Job, Result


@dataclass(frozen=True, slots=True)
class Visible:
    """An engine with a bar on stderr for whatever takes it longer than a second."""

    engine: Engine

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield what the engine yields."""
        if not sys.stderr.isatty():
            return self.engine.map(task, jobs)
        from tqdm import tqdm  # only a terminal needs it

        known = tuple(jobs)
        results = self.engine.map(task, known)
        name = task.__name__
        return iter(tqdm(results, total=len(known), desc=name, unit="module", delay=1, leave=False))


def say(text: str) -> None:
    """Tell a person something on stderr."""
    click.echo(text, err=True)
