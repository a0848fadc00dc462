"""The one model of a LoRA's scale, shared by every format and every command."""

import math

from lora_tools.errors import PolicyError


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


def check_alpha(alpha: float | None) -> None:
    """Raise `PolicyError` for an alpha that no adapter can be written with."""
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise PolicyError(f"an alpha of {alpha:g} is not above 0")


def alpha_for(factor: float, rank: int, *, rslora: bool) -> float:
    """Return the alpha under which factors of ``rank`` have the scale ``factor``.

    >>> alpha_for(2.0, 16, rslora=True), alpha_for(0.5, 16, rslora=False)
    (8.0, 8.0)
    """
    return factor * (math.sqrt(rank) if rslora else rank)


def alpha_at(alpha: float | None, rank: int, other: int, *, rslora: bool) -> float | None:
    """Return the alpha under which another rank has the scale that ``alpha`` has at ``rank``.

    Without a division where there is a choice, so that a rank that comes back has its alpha back.

    >>> alpha_at(48.0, 24, 8, rslora=False), alpha_at(None, 24, 8, rslora=False)
    (16.0, None)
    """
    if alpha is None or rank == other:
        return alpha
    return alpha * math.sqrt(other / rank) if rslora else alpha * other / rank
