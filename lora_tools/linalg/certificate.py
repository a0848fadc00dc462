"""What bounds the best possible error from below: chance, bounded, and a Schur complement.

`docs/mathematics.md` derives both; the names here are those used there.
"""

import math
from typing import NamedTuple

import numpy as np

from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float

ROUNDING = {"float32": 2.0**-20, "float64": 2.0**-40}
"""What rounding may change in an eigenvalue of a Gram matrix, as a share of the largest one."""


def growth(space: int, width: int, steps: int, chance: float) -> float:
    """Return how far the largest eigenvalue may lie above the largest Ritz value, as a factor.

    For a block Lanczos of ``steps`` products with a positive semidefinite matrix of dimension
    ``space``, started from ``width`` Gaussian vectors that are independent of the matrix, the
    factor is exceeded with probability at most ``chance``: with t² = factor - 1,
    P(λ > (1 + t²)·τ) ≤ P(F ≤ 1 / sinh²((2·steps - 1)·asinh t)), where F is the quotient of a χ²
    of ``width`` and one of ``space - width + 1`` degrees of freedom.
    """
    if width > space or steps < 1:
        return math.inf
    low = chi_square_below(width, chance / 2)
    high = chi_square_above(space - width + 1, chance / 2)
    return 1 + math.sinh(math.asinh(math.sqrt(high / low)) / (2 * steps - 1)) ** 2


def chi_square_below(degrees: int, chance: float) -> float:
    """Return x with P(χ² ≤ x) ≤ ``chance``, and little room.

    From P ≤ (x/2)^(d/2) / Γ(d/2 + 1), which leaves only a factor e^(-x/2)·(1 + …) < 1 out.
    """
    half = degrees / 2
    return 2 * math.exp((math.log(chance) + math.lgamma(half + 1)) / half)


def chi_square_above(degrees: int, chance: float) -> float:
    """Return x with P(χ² ≥ x) ≤ ``chance`` (Laurent & Massart 2000, lemma 1)."""
    rate = -math.log(chance)
    return degrees + 2 * math.sqrt(degrees * rate) + 2 * rate


class Ritz(NamedTuple):
    """What a block Lanczos knows of a positive semidefinite A, on an orthonormal basis Q."""

    values: Float[Small, " p"]
    """The eigenvalues of QᵀAQ, ascending."""
    coupling: Float[Small, "w p"]
    """K with KᵀK = CᵀC, where C = (I - QQᵀ)·A·Q·(eigenvectors)."""
    rest: float
    """An upper bound of ‖(I - QQᵀ)·A·(I - QQᵀ)‖."""


def ideal(values: Float[Small, " p"], rest: float, rank: int) -> float:
    """Return what `reach` would be if nothing coupled: no choice of its parameter does better."""
    return float(np.maximum(values[::-1][:rank], rest).sum())


def reach(ritz: Ritz, rank: int) -> Float[Small, " ranks"]:
    """Return upper bounds of the sums of the 0, 1, … ``rank`` largest eigenvalues of A.

    For every μ > rest, an eigenvalue of A above μ is at most the one of Θ + CᵀC/(μ - rest) of
    the same number, and every other is at most μ. A first-order guess picks μ; any is right.
    Costs one p x p eigenvalue problem.
    """
    top = ritz.values[::-1][:rank]
    lengths = np.square(ritz.coupling).sum(0)[::-1][:rank]
    span = max(float(top[0]), ritz.rest) * 1e-12
    floor = ritz.rest + max(span, 1e-300)
    grid = floor + (2 * max(float(top[0]), floor)) * np.geomspace(1e-9, 1.0, 60)
    guesses = [np.maximum(top + lengths / (mu - ritz.rest), mu).sum() for mu in grid]
    mu = float(grid[int(np.argmin(guesses))])
    lifted = np.diag(ritz.values) + ritz.coupling.T @ ritz.coupling / (mu - ritz.rest)
    highest = np.linalg.eigvalsh(lifted)[::-1][:rank]
    return np.append(0.0, np.cumsum(np.maximum(highest, mu)))
