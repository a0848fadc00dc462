"""What a person sees: results on stdout, progress on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import click

from lora_tools.executors import Executor
from lora_tools.executors.base import Job, Result


@dataclass(frozen=True, slots=True)
class Visible:
    """An executor with a bar on stderr for whatever takes it longer than a second."""

    executor: Executor

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield what the executor yields."""
        if not sys.stderr.isatty():
            return self.executor.map(task, jobs)
        from tqdm import tqdm  # only a terminal needs it

        known = tuple(jobs)
        results = self.executor.map(task, known)
        name = task.__name__
        return iter(tqdm(results, total=len(known), desc=name, unit="module", delay=1, leave=False))


def say(text: str) -> None:
    """Tell a person something on stderr."""
    click.echo(text, err=True)
