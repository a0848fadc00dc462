"""Read ahead: the next input is fetched by a thread while the caller computes with this one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from lora_tools.executors.base import Job, Result


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
