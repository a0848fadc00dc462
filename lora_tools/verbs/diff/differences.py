"""Differences: all rows of a diff, and the figures of the whole adapters."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lora_tools.verbs.diff.rows import DiffFigures, DiffRow, finite, sides

SCHEMA = "lora-tools/diff/2"


@dataclass(frozen=True, slots=True)
class Differences:
    """What two adapters A and B have in common, and what not."""

    sources: tuple[str, str]
    formats: tuple[str, str]
    bases: tuple[str | None, str | None]
    tolerance: float
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return not any(self.differing)

    @property
    def differing(self) -> list[DiffRow]:
        """The rows that are not the same."""
        return [row for row in self.rows if row.outcome(self.tolerance) != "same"]

    @property
    def modules(self) -> list[DiffRow]:
        """The rows of updates, without those of other tensors."""
        return [row for row in self.rows if row.kind == "module"]

    @property
    def total(self) -> DiffFigures:
        """The figures of all modules together, as if they were blocks of one matrix."""
        return total([row.figures for row in self.modules if row.figures])

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `report.schemas` describes it."""
        from lora_tools.verbs.diff.words import sentences  # words are made of differences

        whole = self.total
        return {
            "schema": SCHEMA,
            **sides("source", self.sources),
            **sides("format", self.formats),
            **sides("base_model", self.bases),
            "tolerance": self.tolerance,
            "same": self.same,
            "summary": list(sentences(self)),
            "totals": {
                "modules": len(self.modules),
                "tensors": len(self.rows) - len(self.modules),
                "outcomes": dict(Counter(row.outcome(self.tolerance) for row in self.rows)),
                **sides("norm", whole.norms),
                "difference": whole.difference,
                "relative_difference": finite(whole.relative),
                "noise": whole.noise,
                "cosine": whole.cosine,
            },
            "modules": [row.to_dict(self.tolerance) for row in self.modules],
            "tensors": [row.to_dict(self.tolerance) for row in self.rows if row.kind == "tensor"],
            "notes": list(self.notes),
        }


def total(parts: list[DiffFigures]) -> DiffFigures:
    """Return the figures of several modules together."""
    inner = math.fsum(part.inner for part in parts)
    norms = _root([part.norms[0] for part in parts]), _root([part.norms[1] for part in parts])
    factor = inner / norms[0] / norms[0] if norms[0] else 0.0
    # B - cA of each is split at its own best factor: what is left is orthogonal to A.
    residuals = [
        math.hypot(part.residual, (part.inner / part.norms[0] - factor * part.norms[0]))
        if part.norms[0]
        else part.norms[1]
        for part in parts
    ]
    return DiffFigures(
        norms,
        _root([part.difference for part in parts]),
        inner,
        _root(residuals),
        (_root([part.tails[0] for part in parts]), _root([part.tails[1] for part in parts])),
        noise=_root([part.noise for part in parts]),
    )


def _root(values: list[float]) -> float:
    return math.hypot(*values)
