"""Factors of twice the rank, whose second half takes back what the first half began with."""

import numpy as np

from lora_tools.linalg.factors import Small, factors_of
from lora_tools.shapes import Float
from lora_tools.update import LowRank

ALIKE = 0.5
"""A cosine that halves without a common beginning do not reach; training leaves 0.9 and up."""


def takes_back(update: LowRank) -> bool:
    """Whether the factors look like ``[B, -B0]`` and ``[A; A0]``, with B near B0 and A near A0.

    That is what is left of an initialisation that changed the base, when the adapter is converted
    to one of the base as it was: B A - B0 A0. Costs O((out + inp) * rank**2).

    >>> b, a = np.eye(5, 2), np.eye(2, 4)
    >>> takes_back(LowRank(np.vstack([a, a]), np.hstack([b + 0.1, -b]), 4))
    True
    >>> takes_back(LowRank(np.vstack([a, a]), np.hstack([b + 0.1, b]), 4))
    False
    """
    if update.rank % 2:
        return False
    b, a, _ = factors_of(update)
    return -_cosine(b.dot(b)) > ALIKE and _cosine(a.dot(a)) > ALIKE


def _cosine(gram: Float[Small, "*stack rank rank"]) -> float:
    """Return the cosine between a factor's halves, from its Gram matrix; 0 where one is zero."""
    half = gram.shape[-1] // 2
    first, second = gram[..., :half, :half], gram[..., half:, half:]
    traces = (np.trace(each, axis1=-2, axis2=-1).sum() for each in (first, second))
    lengths = np.sqrt(np.prod(list(traces)))
    shared = np.trace(gram[..., :half, half:], axis1=-2, axis2=-1).sum()
    return float(shared / lengths) if lengths > 0 else 0.0
