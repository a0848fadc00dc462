"""Layers that a file has as one: modules that share tensors, and modules made of several pairs.

Arrays pass through as values, numpy's and torch's alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from lora_tools.update import Array

Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FusedPart:
    """A module's part of a fused layer's factors: rows of A, and rows of B in its own order."""

    a: Range
    b: tuple[Range, ...]

    @property
    def out(self) -> int:
        """How many rows of B are its own."""
        return sum(stop - start for start, stop in self.b)

    def factors(self, b: "Array", a: "Array") -> tuple["Array", "Array"]:
        """Return its own B and A."""
        return joined([b[start:stop] for start, stop in self.b]), a[slice(*self.a)]


@dataclass(frozen=True, slots=True)
class Diagonal:
    """A fused layer of ``count`` equal parts, whose pairs lie one under the other."""

    count: int

    def factors(self, b: "Array", a: "Array") -> tuple["Array", "Array"]:
        """Return B with the parts' own along its diagonal, and A as it is: nothing is rounded."""
        library = _library(b)
        parts = b.reshape(self.count, -1, b.shape[-1])
        zeros = library.zeros_like(parts[0])
        rows = [
            library.concatenate([part if i == j else zeros for j in range(self.count)], axis=1)
            for i, part in enumerate(parts)
        ]
        return library.concatenate(rows), a


Fused: TypeAlias = FusedPart | Diagonal


def blocks(sizes: Sequence[int]) -> list[Range]:
    """Return the ranges of blocks of these sizes, one behind the other.

    >>> blocks([4, 2, 2])
    [(0, 4), (4, 6), (6, 8)]
    """
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def joined(pieces: Sequence["Array"]) -> "Array":
    """Return arrays one under the other; one alone as it is."""
    return pieces[0] if len(pieces) == 1 else _library(pieces[0]).concatenate(pieces)


def _library(array: Any) -> Any:
    if hasattr(array, "astype"):
        import numpy

        return numpy
    import torch  # the array is torch's own

    return torch
