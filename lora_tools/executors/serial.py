"""One job after another, in the calling thread."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lora_tools.executors.base import Job, Result


@dataclass(frozen=True, slots=True)
class Serial:
    """The executor that every other one has to agree with."""

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in order, each when it is asked for."""
        return map(task, jobs)
