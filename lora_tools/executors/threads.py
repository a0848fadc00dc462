"""Jobs on threads: torch lets others run while it computes, and so does reading a file."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lora_tools.executors.base import Job, Result


@dataclass(frozen=True, slots=True)
class Threads:
    """``count`` threads, each computing on one core."""

    count: int
    patient: bool = True
    """Whether an interrupt waits for the jobs that have begun; they would run on beside the caller.

    Where the process ends with the interrupt, they end with it.
    """

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in order, at most two jobs per thread ahead of the reader."""
        pool = ThreadPoolExecutor(self.count)
        pending: deque[Future[Result]] = deque()
        wait = True
        try:
            for job in jobs:
                pending.append(pool.submit(_on_one_core, task, job))
                if len(pending) > 2 * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except GeneratorExit:
            raise
        except BaseException as error:
            wait = self.patient or isinstance(error, Exception)
            raise
        finally:
            pool.shutdown(wait=wait, cancel_futures=True)


def _on_one_core(task: Callable[[Job], Result], job: Job) -> Result:
    # The jobs are many and small: a core each beats all cores on one. Torch counts threads per
    # thread, and may be imported by the first job that needs it: this waits until it is.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    return task(job)


def ahead(load: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Yield ``load(job)`` in order, one job ahead of the reader; memory holds two results."""
    pool = ThreadPoolExecutor(1)
    try:
        pending = None
        for job in jobs:
            following = pool.submit(load, job)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
