"""An executor whose jobs run in another process, which has nothing but what they pickle to."""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


class Spawned:
    """One process, spawned: it shares no memory with the caller, and opens files for itself."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.sizes: dict[str, list[int]] = {}
        """Bytes of every job's pickle, by task."""

    def map(self, task: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Yield results in order, with few jobs in flight."""
        pending: deque[Any] = deque()
        sizes = self.sizes.setdefault(task.__name__, [])
        for job in jobs:
            data = pickle.dumps(job)
            sizes.append(len(data))
            pending.append(self._pool.submit(run, task, data))
            if len(pending) > 4:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def run(task: Callable[[Any], Any], job: bytes) -> Any:
    """Unpickle a job and do it."""
    return task(pickle.loads(job))
