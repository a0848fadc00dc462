"""What became of an update where numbers were to change by it: how much of it rounding took."""

from typing import NamedTuple

import numpy as np

from lora_tools.shapes import Float
from lora_tools.update import Array


class Tally(NamedTuple):
    """What an addition did to the elements of a slice, or of a tensor."""

    update: float = 0.0
    """``||dW||_F ** 2``."""
    error: float = 0.0
    """``||(W' - W) - dW||_F ** 2``."""
    updated: int = 0
    """Elements whose update is not zero."""
    lost: int = 0
    """Those of them that kept their value."""

    @property
    def lost_to_rounding(self) -> float:
        """The share of the updated elements that kept their value."""
        return self.lost / self.updated if self.updated else 0.0

    def __add__(self, other: object) -> "Tally":
        """Return the tally of both."""
        if not isinstance(other, Tally):
            return NotImplemented
        return Tally(
            self.update + other.update,
            self.error + other.error,
            self.updated + other.updated,
            self.lost + other.lost,
        )


def tally(
    delta: Float[Array, " n"],
    change: Float[Array, " n"],
    room: Float[np.ndarray, " n"] | None = None,
) -> Tally:
    """Return what became of an update ``delta`` of numbers that have changed by ``change``.

    The change is ``W' - W`` as it was formed, not a difference of sums: what is far smaller than
    ``W`` keeps its digits in it. ``room`` is overwritten, on the host: a buffer that the cache has
    already spares one that it has not.

    >>> tally(np.array([0.5, 0.25, 0.0]), np.array([0.5, 0.0, 0.0]))
    Tally(update=0.3125, error=0.0625, updated=2, lost=1)
    """
    updated = delta != 0
    lost = change == 0
    lost &= updated
    if isinstance(delta, np.ndarray):
        error = np.subtract(change, delta, out=room)
        counts = int(np.count_nonzero(updated)), int(np.count_nonzero(lost))
        return Tally(float(delta @ delta), float(error @ error), *counts)
    import torch

    parts = (delta, change - delta)
    squares = [float(x.square().sum(dtype=torch.float64).item()) for x in parts]
    return Tally(squares[0], squares[1], int(updated.sum()), int(lost.sum()))
