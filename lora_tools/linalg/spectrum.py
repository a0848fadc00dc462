"""Spectra as policies see them: what each rank of a module would discard, and cost."""

from dataclasses import dataclass

import numpy as np

from lora_tools.errors import BoundError
from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What a policy knows of one module."""

    name: str
    tail: Float[np.ndarray, " ranks"]
    """Squared Frobenius norm of what is left when 0, 1, … values of each update are kept."""
    cost: float
    """Parameters per unit of rank."""
    width: float
    """Bytes per parameter, as they will be stored."""
    choices: tuple[int, ...]
    """The ranks that it may be given, ascending."""
    groups: int = 1
    """A rank of ``groups * k`` keeps k singular values of each update of the stack."""

    @property
    def tails(self) -> Float[np.ndarray, " choices"]:
        """Squared Frobenius norm of what each choice discards."""
        return self.tail[[choice // self.groups for choice in self.choices]]

    @property
    def costs(self) -> Float[np.ndarray, " choices"]:
        """Parameters of each choice."""
        return np.array(self.choices, dtype=np.float64) * self.cost


def tail(s: Float[Small, "*stack rank"]) -> Float[np.ndarray, " ranks"]:
    """Return the squared norm of what is left of a stack when 0, 1, … values are kept.

    >>> tail(np.array([3.0, 1.0]))
    array([10.,  1.,  0.])
    """
    energy = np.square(s).reshape(-1, s.shape[-1]).sum(0)
    # Summed from the small end, so that small tails keep their digits.
    return np.append(np.cumsum(energy[::-1])[::-1], 0.0)


NOISE = 8 * 2.0**-24
"""A share of the norm that factors in float32 cannot tell from their own rounding."""


def numerical_rank(s: Float[Small, "*stack rank"]) -> int:
    """Return how many singular values are more than noise; all of them if all are zero.

    >>> numerical_rank(np.array([2.0, 1.0, 1e-9, 1e-12])), numerical_rank(np.zeros(3))
    (2, 3)
    """
    left = np.sqrt(tail(s))
    return int(np.argmax(left <= NOISE * left[0])) if left[0] else s.shape[-1]


def choices(
    rank: int, *, least: int = 1, most: int | None = None, multiple: int = 1
) -> tuple[int, ...]:
    """Return the ranks that a module of ``rank`` may be given, ascending.

    Multiples of ``multiple`` between ``least`` and ``most``, never above its own rank; 0 is one of
    them. A module whose own rank is below the smallest of them keeps it. Raises `BoundError` if
    there are none.

    >>> choices(20, multiple=8), choices(4, multiple=8), choices(4, least=3)
    ((8, 16), (4,), (3, 4))
    >>> choices(20, least=0, multiple=8)
    (0, 8, 16)
    """
    first = -(-least // multiple) * multiple
    if rank < first:
        return (rank,)
    allowed = tuple(range(first, min(rank, most or rank) + 1, multiple))
    if not allowed:
        raise BoundError(f"no rank from {least} to {most} is a multiple of {multiple}").hint(
            "Change --min-rank, --max-rank or --multiple-of."
        )
    return allowed
