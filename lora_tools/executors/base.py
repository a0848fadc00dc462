"""What an executor promises, and the one that every other has to agree with."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """Maps a pure task over jobs. Tasks and jobs are picklable; results never depend on it."""

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in the order of the jobs, with few in flight; the first error ends it."""
        ...


@dataclass(frozen=True, slots=True)
class Serial:
    """One job after another, in the calling thread."""

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in order, each when it is asked for."""
        return map(task, jobs)
