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
    whole = math.fsum(norm**2 for norm, _ in parts)
    lost = math.fsum((norm * error) ** 2 for norm, error in parts)
    return math.sqrt(lost / whole) if whole else 0.0


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
