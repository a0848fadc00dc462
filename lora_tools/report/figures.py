"""The figures of reports: those of several rows together, shares and sizes for people."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol


class Measured(Protocol):
    """A row with the norm of an update, and the relative error of what became of it."""

    @property
    def norm(self) -> float:
        """``||dW||_F``."""
        ...

    @property
    def error(self) -> float:
        """``||dW - dW'||_F / ||dW||_F``."""
        ...


class HasOutcome(Protocol):
    """A row that says in a word what became of it."""

    @property
    def outcome(self) -> str:
        """The word."""
        ...


def error(rows: Iterable[Measured]) -> float:
    """Return the relative error of rows together."""
    return total((row.norm, row.error) for row in rows)


def outcomes(rows: Iterable[HasOutcome]) -> Mapping[str, int]:
    """Return how many rows have each outcome, in the order of the first of each."""
    return dict(Counter(row.outcome for row in rows))


def kept(parts: Iterable[tuple[float, float]]) -> float:
    """Return which share of a squared norm is kept, from the norm and the share of each module.

    >>> kept([(3.0, 1.0), (4.0, 0.5)]), kept([])
    (0.68, 1.0)
    """
    parts = list(parts)
    squares = [norm**2 for norm in shares(norm for norm, _ in parts)]
    whole = math.fsum(squares)
    held = math.fsum(square * share for square, (_, share) in zip(squares, parts, strict=True))
    return held / whole if whole else 1.0


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


def removed_shares(removed: Mapping[str, float], kept: Iterable[float]) -> dict[str, float]:
    """Return the share of ``||dW||`` that each module had that was removed, beside those kept.

    >>> removed_shares({"q": 3.0}, [4.0])
    {'q': 0.6}
    """
    whole = math.hypot(*removed.values(), *kept)
    return {name: norm / whole if whole else 0.0 for name, norm in removed.items()}


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
