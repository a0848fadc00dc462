"""The one model of a LoRA's scale, shared by every format and every command."""

import math


def scale(alpha: float | None, rank: int, *, rslora: bool) -> float:
    """Return what multiplies ``b @ a``.

    ``alpha / rank`` (arXiv 2106.09685), ``alpha / sqrt(rank)`` under rsLoRA (arXiv 2312.03732),
    and 1 where a file has no alpha.

    >>> scale(16, 64, rslora=True), scale(16, 64, rslora=False), scale(None, 64, rslora=False)
    (2.0, 0.25, 1.0)
    """
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if rslora else rank)


def alpha_for(factor: float, rank: int, *, rslora: bool) -> float:
    """Return the alpha under which factors of ``rank`` have the scale ``factor``.

    >>> alpha_for(2.0, 16, rslora=True), alpha_for(0.5, 16, rslora=False)
    (8.0, 8.0)
    """
    return factor * (math.sqrt(rank) if rslora else rank)
