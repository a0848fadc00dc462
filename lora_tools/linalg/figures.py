"""Figures that say in one number how a spectrum is spread."""

from collections.abc import Sequence

import numpy as np

from lora_tools.linalg.factors import Small
from lora_tools.linalg.spectrum import tail
from lora_tools.shapes import Float


def pooled(s: Float[Small, "*stack rank"]) -> Float[np.ndarray, " rank"]:
    """Return one spectrum for a stack: the root of the summed squares of each place.

    What is kept of a stack is kept of all its updates, so energies of a place belong together.

    >>> pooled(np.array([[3.0, 1.0], [4.0, 0.0]]))
    array([5., 1.])
    """
    pool: np.ndarray = np.sqrt(np.square(s).reshape(-1, s.shape[-1]).sum(0))
    return pool


def stable_rank(s: Float[np.ndarray, " rank"]) -> float:
    """Return ||.||_F ** 2 / sigma_1 ** 2: at least 1, at most the rank, unmoved by small values.

    Rudelson and Vershynin 2007, section 1. The spectrum must not be all zero.

    >>> stable_rank(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    return float(np.square(s / s[0]).sum())


def effective_rank(s: Float[np.ndarray, " rank"]) -> float:
    """Return the exponential of the entropy of the singular values, taken as shares of their sum.

    Roy and Vetterli 2007, "The effective rank", definition 1. The spectrum must not be all zero.

    >>> round(effective_rank(np.array([1.0, 1.0, 1.0, 0.0])), 12)
    3.0
    """
    share = s[s > 0] / s.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def sufficient(s: Float[np.ndarray, " rank"], shares: Sequence[float]) -> list[int]:
    """Return the smallest ranks that keep these shares of ||.||_F ** 2.

    >>> sufficient(np.array([3.0, 1.0, 0.0]), [0.9, 0.99])
    [1, 2]
    """
    left = tail(s)
    bounds = [(1 - share) * left[0] * (1 + 1e-12) for share in shares]  # as `Energy` rounds
    return [int(np.argmax(left <= bound)) for bound in bounds]
