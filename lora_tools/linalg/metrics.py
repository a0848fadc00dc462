"""Distances between low-rank updates, measured on the factors as they are stored."""

import math

import numpy as np

from lora_tools.linalg.half import widen
from lora_tools.linalg.tall import Small, hold
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

SLICE = 65_536
"""Elements that are widened and summed at a time: they fit a core's cache."""


def squared_norm(update: LowRank) -> float:
    """Return ``||scale * b @ a||_F ** 2``, in float64. Costs O((out + inp) * rank**2)."""
    return inner(update, update)


def inner(x: LowRank, y: LowRank) -> float:
    """Return the Frobenius inner product <X, Y> = tr((YbtXb)(Xa Yat)), summed over the stack."""
    left, right = hold(y), hold(x)
    return x.scale * y.scale * trace(left.b.dot(right.b), left.a.dot(right.a))


def squared_distance(x: LowRank, y: LowRank) -> float:
    """Return ``||X - Y||_F ** 2``, in float64, from three inner products.

    Rounding limits it to about 1e-16 of ``||X||_F ** 2``: errors below 1e-8 relative are noise.
    """
    return max(inner(x, x) - 2 * inner(x, y) + inner(y, y), 0.0)


def trace(left: Float[Small, "*stack m n"], right: Float[Small, "*stack m n"]) -> float:
    """Return ``tr(left.T @ right)``, summed over the stack.

    >>> from numpy import eye
    >>> trace(eye(2), eye(2))
    2.0
    """
    return float((left * right).sum())


def norm(array: Array) -> float:
    """Return the Frobenius norm of any array of numpy or torch, summed in float64 by slices.

    Memory holds a slice in float64 beside the array.
    """
    flat = array.reshape(-1)
    slices = (_wide(flat[start : start + SLICE]) for start in range(0, flat.shape[0], SLICE))
    return math.sqrt(math.fsum(float(part @ part) for part in slices))


def _wide(array: Array) -> Float[np.ndarray, " n"]:
    """Return a slice in float64."""
    if not isinstance(array, np.ndarray):
        double: np.ndarray = array.double().numpy()
        return double
    return (widen(array) if array.dtype == np.float16 else array).astype(np.float64, copy=False)
