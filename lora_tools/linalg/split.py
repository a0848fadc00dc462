"""Split a matrix into two thin factors as they will be stored, and measure what that cost."""

from typing import NamedTuple

import numpy as np

from lora_tools.linalg.exact import exact
from lora_tools.linalg.krylov import Leading
from lora_tools.linalg.metrics import NOISE, trace
from lora_tools.linalg.operator import Operator
from lora_tools.linalg.rounding import rounded
from lora_tools.linalg.truncate import least_squares
from lora_tools.update import Array

FINE = 1e-3
"""Where less than this share of ‖D‖² is left, float32 products would drown it."""


class Split(NamedTuple):
    """D ≈ scale · left @ right in their stored type, and the squared distance of just those."""

    left: Array
    right: Array
    squared_error: float


@exact()
def split(matrix: Operator, found: Leading, rank: int, code: str, scale: float = 1.0) -> Split:
    """Return the best factors of ``rank``, in the type ``code``, that ``scale`` multiplies.

    The left one, U·√Σ, is rounded first; the right one is the least-squares fit to it *as
    rounded*, which costs the one pass over D that the error needs anyway. Raises
    `NonFiniteError` if the type cannot hold the numbers.
    """
    kept = found.squares[:rank]
    tail = matrix.squared - float(kept.sum())
    single = found.method == "krylov float32" and tail >= FINE * matrix.squared
    dtype = "float32" if single and code != "F64" else "float64"
    if found.side == "right":
        root = _power(kept, -0.25)
        rows = matrix.host(found.vectors[:rank]).astype(np.float64) * root[:, None]
        columns = matrix.host(matrix.columns(matrix.array(rows, dtype)))
    else:
        columns = matrix.host(found.vectors[:, :rank]) * _power(kept, 0.25)
    left = rounded(columns * scale**-0.5, code)
    cross = matrix.host(matrix.rows(matrix.array(left.wide, dtype))).astype(np.float64)
    wide = left.wide.astype(np.float64)
    own = wide.T @ wide
    right = rounded(least_squares(own, cross) / scale, code)
    fitted = right.wide.astype(np.float64) * scale
    squared = matrix.squared - 2 * trace(cross, fitted) + trace(own, fitted @ fitted.T)
    if squared < NOISE * matrix.squared:
        squared = matrix.distance(wide, fitted)
    return Split(left.bits, right.bits, squared)


def _power(squares: Array, exponent: float) -> Array:
    usable = squares > 1e-28 * max(float(squares.max(initial=0.0)), 1e-300)
    return np.where(usable, np.where(usable, squares, 1.0) ** exponent, 0.0)
