"""The figures of reports: errors of several modules together, shares and sizes for people."""

import math
from collections.abc import Iterable


def total(parts: Iterable[tuple[float, float]]) -> float:
    """Return the relative error of modules together, from the norm and the error of each.

    The root of ``sum((norm * error) ** 2) / sum(norm ** 2)``: as if they were blocks of one matrix.

    >>> total([(3.0, 1.0), (4.0, 0.0)])
    0.6
    """
    parts = list(parts)
    norms = shares(norm for norm, _ in parts)
    whole = math.hypot(*norms)
    lost = math.hypot(*(share * error for share, (_, error) in zip(norms, parts, strict=True)))
    return lost / whole if whole else 0.0


def shares(norms: Iterable[float]) -> list[float]:
    """Return norms as shares of the largest, whose squares float64 can hold.

    >>> shares([1e-300, 5e-301, 0.0])
    [1.0, 0.5, 0.0]
    """
    norms = list(norms)
    top = max(norms, default=0.0)
    return [norm / top for norm in norms] if top else norms


def size(nbytes: float) -> str:
    """Write a number of bytes for people.

    >>> size(512), size(20_500_000)
    ('512 B', '20.5 MB')
    """
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def percent(value: float) -> str:
    """Write a share with three significant digits; tiny ones as a power of ten."""
    if value == 0 or value >= 1e-4:
        return f"{100 * value:.3g} %" if value < 0.999 or value == 1 else f"{100 * value:.5g} %"
    return f"{100 * value:.1e} %"
