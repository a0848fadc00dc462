"""Rows of a matrix as ranges: picked, paired and joined without an array of indices."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from lora_tools.update import Array

Rows: TypeAlias = tuple[range, ...]
"""Rows in the order in which somebody wants them: runs, each with a step."""


def count(rows: Rows) -> int:
    """Return how many rows there are."""
    return sum(map(len, rows))


def joined(runs: Iterable[range]) -> Rows:
    """Return the same rows in the same order, in as few runs as they follow one another.

    >>> joined([range(0, 2), range(2, 6), range(8, 9)])
    (range(0, 6), range(8, 9))
    """
    found: list[range] = []
    for run in runs:
        last = found[-1] if found else range(0)
        if last and run and last.step == run.step and last[-1] + last.step == run[0]:
            found[-1] = range(last.start, run[-1] + run.step, run.step)
        elif run:
            found.append(run)
    return tuple(found)


def select(rows: Rows, picks: Rows) -> Rows:
    """Return those of the rows that stand at these positions.

    >>> select((range(10, 14), range(0, 4)), (range(1, 8, 2),))
    (range(11, 14, 2), range(1, 4, 2))
    """
    found = []
    for pick in picks:
        start = 0
        for run in rows:
            first = max(0, -((pick.start - start) // pick.step))
            last = max(first, -((pick.start - start - len(run)) // pick.step))
            inner = pick[first:last]
            found.append(run[inner.start - start : inner.stop - start : inner.step])
            start += len(run)
    return joined(found)


def paired(left: Rows, right: Rows) -> Iterator[tuple[range, range]]:
    """Yield which runs of one side are which of the other, position by position.

    >>> list(paired((range(0, 4),), (range(6, 8), range(0, 2))))
    [(range(0, 2), range(6, 8)), (range(2, 4), range(0, 2))]
    """
    ones, others = [*left], [*right]
    while ones and others:
        length = min(len(ones[0]), len(others[0]))
        yield ones[0][:length], others[0][:length]
        for runs in (ones, others):
            runs[0] = runs[0][length:]
            if not runs[0]:
                del runs[0]


def taken(array: "Array", rows: Rows) -> "Array":
    """Return these rows of an array, numpy's or torch's; a view where they are one run."""
    runs = [array[run.start : run.stop : run.step] for run in rows]
    if len(runs) == 1:
        return runs[0]
    if hasattr(array, "astype"):
        import numpy

        return numpy.concatenate(runs)
    import torch  # the array is torch's own

    return torch.concatenate(runs)
