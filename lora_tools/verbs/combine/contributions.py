"""What each adapter contributes to each module of a combination, and where adapters fight."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lora_tools.names import collapse, template
from lora_tools.report import grouped, percent
from lora_tools.text import label

OPPOSED = -0.1
"""A cosine below which the updates of two adapters work against each other."""
LOST = 0.5
"""A share of the norms that is left of a sum, below which most of it has cancelled."""


@dataclass(frozen=True, slots=True)
class Pair:
    """How the weighted updates of two adapters lie to each other in one module."""

    adapters: tuple[int, int]
    """Their numbers, from 1."""
    cosine: float
    column_angles: tuple[float, float] | None
    """The smallest and the largest principal angle of their column spaces, in radians; None where
    an update has full rank."""
    row_angles: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One module: what each adapter adds to it. Norms are Frobenius norms, weights included."""

    module: str
    adapters: tuple[int, ...]
    """The numbers of the adapters that have it, from 1."""
    norms: tuple[float, ...]
    """``||w * dW||`` of each of them."""
    norm: float
    """``||sum(w * dW)||``, of the sum."""
    pairs: tuple[Pair, ...] = ()
    """Two by two, without those that add nothing."""

    @property
    def left(self) -> float:
        """The norm of the sum as a share of the sum of the norms: 1 where all point one way."""
        total = math.fsum(self.norms)
        return self.norm / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "module": self.module,
            "adapter_numbers": self.adapters,
            "norms": self.norms,
            "norm": self.norm,
            "remaining": self.left,
            "adapter_pairs": [
                {
                    "adapter_numbers": pair.adapters,
                    "cosine": pair.cosine,
                    "column_angles": pair.column_angles,
                    "row_angles": pair.row_angles,
                }
                for pair in self.pairs
            ],
        }


def sentences(rows: Sequence[Contribution]) -> Iterator[str]:
    """Yield in words where adapters fight, and where they cancel each other."""
    count = max((number for row in rows for number in row.adapters), default=0)
    for first, second in combinations(range(1, count + 1), 2):
        yield from _fights(rows, first, second)
    cancelled = [row for row in rows if row.left < LOST and len(row.adapters) > 1]
    zero = [row for row in cancelled if not row.norm]
    if zero:
        names = ", ".join(label(collapse([row.module for row in g])) for g in _alike(zero))
        yield f"{len(zero)} modules cancel to zero: {names}"
    for group in _alike([row for row in cancelled if row.norm]):
        whole = math.hypot(*(row.norm for row in group))
        parts = math.hypot(*(math.fsum(row.norms) for row in group))
        names = label(collapse([row.module for row in group]))
        yield f"{percent(whole / parts)} is left of what the adapters add to {names}"


def _fights(rows: Sequence[Contribution], first: int, second: int) -> Iterator[str]:
    found: list[tuple[Contribution, float]] = [
        (row, pair.cosine)
        for row in rows
        for pair in row.pairs
        if pair.adapters == (first, second) and pair.cosine < OPPOSED
    ]
    cosines = {row.module: cosine for row, cosine in found}
    for group in _alike([row for row, _ in found]):
        names = [row.module for row in group]
        worst = min(cosines[name] for name in names)
        ends = f"{worst:.2f}" if len(names) == 1 else f"down to {worst:.2f}"
        where = label(collapse(names))
        yield f"adapters {first} and {second} fight in {where}: cosine {ends}"


def _alike(rows: Sequence[Contribution]) -> list[list[Contribution]]:
    return grouped(rows, lambda row: template(row.module))
