"""Layers that a file has as one: modules that share tensors, and modules made of several pairs.

Arrays pass through as values, numpy's and torch's alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_tools.architectures.rows import Rows, count

if TYPE_CHECKING:
    from lora_tools.update import Array


@dataclass(frozen=True, slots=True)
class FusedPart:
    """A module's part of a fused layer's factors: rows of A, and rows of B in its own order."""

    a: range
    b: Rows

    @property
    def out(self) -> int:
        """How many rows of B are its own."""
        return count(self.b)

    def factors(self, b: "Array", a: "Array") -> tuple["Array", "Array"]:
        """Return its own B and A."""
        rows = [b[run.start : run.stop : run.step] for run in self.b]
        return joined(rows), a[self.a.start : self.a.stop]


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


@dataclass(frozen=True, slots=True)
class ByExpert:
    """Experts whose B has one expert's columns after another's, and not every expert's first."""

    count: int

    def factors(self, b: "Array", a: "Array") -> tuple["Array", "Array"]:
        """Return B with its columns as PEFT orders them, and A, which is the same in both."""
        return b.reshape(len(b), self.count, -1).swapaxes(1, 2).reshape(b.shape), a


Fused: TypeAlias = FusedPart | Diagonal | ByExpert


def joined(pieces: Sequence["Array"]) -> "Array":
    """Return arrays one under the other; one alone as it is."""
    return pieces[0] if len(pieces) == 1 else _library(pieces[0]).concatenate(pieces)


def _library(array: Any) -> Any:
    if hasattr(array, "astype"):
        import numpy

        return numpy
    import torch  # the array is torch's own

    return torch
