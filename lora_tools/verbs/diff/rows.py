"""Rows: what was found of one module or tensor, and whether that is a difference."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lora_tools.linalg.compare import Spaces

Kind: TypeAlias = Literal["module", "tensor"]
Outcome: TypeAlias = Literal["same", "different", "only in A", "only in B", "other shape"]


@dataclass(frozen=True, slots=True)
class DiffFigures:
    """The comparison of a pair in numbers. Norms are Frobenius norms, the scales included."""

    norms: tuple[float, float] = (0.0, 0.0)
    difference: float = 0.0
    """``||A - B||``."""
    inner: float = 0.0
    """``<A, B>``."""
    residual: float = 0.0
    """``||B - c A||`` with the best factor c."""
    tails: tuple[float, float] = (0.0, 0.0)
    """The least errors of an update of the other's rank: of A, of B."""
    columns: Spaces | None = None
    rows: Spaces | None = None
    noise: float = 0.0
    magnitude: float | None = None
    """Relative difference of DoRA's magnitudes; infinite if one has none, None if both."""
    bias: float | None = None
    """Relative difference of the biases of B, scaled; None if there are none."""

    @property
    def relative(self) -> float:
        """``||A - B|| / ||A||``; infinite where A is zero and B is not."""
        return ratio(self.difference, self.norms[0])

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between A and B as vectors; None where one of them is zero."""
        if not (self.norms[0] and self.norms[1]):
            return None
        return max(-1.0, min(1.0, self.inner / self.norms[0] / self.norms[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data; null is what is not there or is infinite."""
        columns, rows = self.columns, self.rows
        return {
            **sides("norm", self.norms),
            "difference": self.difference,
            "relative_difference": finite(self.relative),
            "noise": self.noise,
            "cosine": self.cosine,
            "column_angles": list(columns.angles) if columns else None,
            "row_angles": list(rows.angles) if rows else None,
            "new_columns": columns.new if columns else None,
            "new_rows": rows.new if rows else None,
            "lost_columns": columns.lost if columns else None,
            "lost_rows": rows.lost if rows else None,
            "magnitude_difference": finite(self.magnitude),
            "bias_difference": finite(self.bias),
        }


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One module, or one tensor that belongs to no update, of either adapter or of both."""

    kind: Kind
    names: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    ranks: tuple[int | None, int | None]
    """As configurations count them."""
    scales: tuple[float | None, float | None]
    figures: DiffFigures | None
    """None where the shapes differ."""
    identical: bool = False
    """The factors and the scale, or the tensor, are the same numbers in the same type."""

    @property
    def name(self) -> str:
        """What A calls it, or else B."""
        return self.names[0] or self.names[1] or ""

    @property
    def paired(self) -> bool:
        """Whether both adapters have it."""
        return None not in self.names

    @property
    def worst(self) -> float:
        """The largest of its relative differences."""
        if self.figures is None:
            return math.inf
        parts = (self.figures.relative, self.figures.magnitude, self.figures.bias)
        return max(part for part in parts if part is not None)

    def outcome(self, tolerance: float) -> Outcome:
        """Return what it comes to; a module that adds nothing is not missed."""
        if self.figures is None:
            return "other shape"
        if self.worst <= tolerance:
            return "same"
        if self.paired:
            return "different"
        return "only in B" if self.names[0] is None else "only in A"

    def to_dict(self, tolerance: float) -> dict[str, Any]:
        """Return the row as plain data."""
        head = {
            self.kind: self.name,
            **sides(self.kind, self.names),
            "outcome": self.outcome(tolerance),
            "identical": self.identical,
            **sides("shape", self.shapes),
            **sides("dtype", self.dtypes),
        }
        if self.kind == "tensor":
            relative = self.figures.relative if self.figures else None
            return head | {"relative_difference": finite(relative)}
        figures = self.figures.to_dict() if self.figures else dict.fromkeys(DiffFigures().to_dict())
        return head | sides("rank", self.ranks) | sides("scale", self.scales) | figures


def sides(name: str, values: tuple[Any, Any]) -> dict[str, Any]:
    """Return what A and B have as two fields."""
    return {f"{name}_a": values[0], f"{name}_b": values[1]}


def ratio(part: float, whole: float) -> float:
    """Return a quotient of norms: 0 of nothing is 0, and more than nothing is infinite."""
    if not part:
        return 0.0
    return part / whole if whole else math.inf


def finite(value: float | None) -> float | None:
    """Return a number for JSON: null if it is infinite."""
    return value if value is not None and math.isfinite(value) else None
