"""Distances between low-rank updates, measured on the factors as they are stored."""

import math

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Factors, Small, factors_of
from lora_tools.linalg.half import widen
from lora_tools.linalg.range import LEAST, MOST, check_measurable
from lora_tools.linalg.triangle import triangle
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

SLICE = 65_536
"""Elements that are widened and summed at a time: they fit a core's cache."""


NOISE = 1e-12
"""A share of a squared norm below which differences of squares keep too few digits."""


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def squared_norm(update: LowRank) -> float:
    """Return ``||scale * b @ a||_F ** 2``, in float64. Costs O((out + inp) * rank**2).

    Raises `NonFiniteError` for NaN and Inf, and where float64 cannot hold the square.
    """
    b, a, scale = factors_of(update)
    gram_b, gram_a = b.dot(b), a.dot(a)
    squared = trace(gram_b, gram_a)
    # Of factors that cancel each other, rounding leaves next to nothing on either side of zero.
    lengths = [float(np.trace(gram, axis1=-2, axis2=-1).sum()) for gram in (gram_b, gram_a)]
    if squared < NOISE * lengths[0] * lengths[1]:
        squared = distance(Factors(b, a, 1.0)) ** 2
    check_measurable(math.sqrt(squared), scale)
    return scale * squared * scale


@exact()
def inner(x: LowRank, y: LowRank) -> float:
    """Return the Frobenius inner product <X, Y> = tr((YbtXb)(Xa Yat)), summed over the stack."""
    return _inner(factors_of(x), factors_of(y))


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def squared_distance(x: LowRank, y: LowRank) -> float:
    """Return ``||X - Y||_F ** 2``, in float64.

    From three inner products, or where those leave too few digits from triangles. Raises
    `NonFiniteError` for NaN and Inf, and where float64 cannot hold the squares.
    """
    return between(factors_of(x), factors_of(y))


def between(x: Factors, y: Factors) -> float:
    """Return ``||X - Y||_F ** 2`` of factors that are held."""
    whole = _inner(x, x)
    squared = whole - 2 * _inner(x, y) + _inner(y, y)
    if not math.isfinite(squared):
        raise NonFiniteError("its numbers, or their products, exceed float64")
    check_measurable(math.sqrt(max(whole, 0.0)))
    return squared if squared > NOISE * whole else distance(x, y) ** 2


def distance(x: Factors, y: Factors | None = None) -> float:
    """Return ``||X - Y||_F``, right to the rounding of the factors; ``||X||_F`` without Y.

    With [Bx, By] = Qb Rb and [Ax, Ay] = Qa Ra it is the norm of Rb diag(sx, -sy) Rat.
    """
    sides = [[x.b], [x.a]] if y is None else [[x.b, y.b], [x.a, y.a]]
    b, a = (triangle(side) for side in sides)
    rank = x.b.array.shape[-1]
    weights = np.full(b.shape[-1], 0.0 if y is None else -y.scale)
    weights[:rank] = x.scale
    return float(np.linalg.norm((b * weights) @ a.swapaxes(-1, -2)))


def _inner(x: Factors, y: Factors) -> float:
    return trace(x.scale * y.b.dot(x.b), y.scale * y.a.dot(x.a))


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
    starts = range(0, flat.shape[0], SLICE)
    parts = (length(_wide(flat[start : start + SLICE])) for start in starts)
    return math.hypot(*parts)


def length(vector: Float[np.ndarray, " n"]) -> float:
    """Return the norm of a vector in float64, wherever in its range the numbers lie.

    >>> from numpy import array
    >>> [f"{length(10.0**power * array([3, -4])):.6g}" for power in (-200, 0, 200)]
    ['5e-200', '5', '5e+200']
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squared = float(vector @ vector)
    if LEAST**2 <= squared <= MOST**2:
        return math.sqrt(squared)
    top = float(np.abs(vector).max(initial=0.0))
    if not top or not math.isfinite(top):
        return top
    power = math.frexp(top)[1]
    near = np.ldexp(vector, -power)
    with np.errstate(over="ignore"):  # a norm beyond float64 is Inf
        return float(np.ldexp(math.sqrt(float(near @ near)), power))


def _wide(array: Array) -> Float[np.ndarray, " n"]:
    """Return a slice in float64."""
    if not isinstance(array, np.ndarray):
        double: np.ndarray = array.double().numpy()
        return double
    return (widen(array) if array.dtype == np.float16 else array).astype(np.float64, copy=False)
