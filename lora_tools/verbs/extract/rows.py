"""What became of each tensor, and the report of all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_tools.names import collapse, template
from lora_tools.report import (
    Document,
    error,
    grouped,
    kept,
    outcomes,
    percent,
    remarks,
    shape,
    size,
    span,
    table,
    total,
)
from lora_tools.text import joined, label

SCHEMA = "lora-tools/extraction/2"

OF_TENSORS = ("shape", "bytes_before", "norm", "relative_norm", "outcome", "reason")
"""What the report says of a tensor that is no module of the adapter, beside its name."""


@dataclass(frozen=True, slots=True)
class ExtractRow:
    """One tensor of the base. Errors are relative Frobenius norms."""

    module: str
    shape: tuple[int, ...]
    outcome: str
    """``extracted``; ``carried`` whole; ``left out``; ``unchanged``; ``not finite``."""
    bytes_before: int
    """Of the tensor in the tuned model."""
    reason: str = ""
    """Why it was left out."""
    rank_after: int = 0
    rank_stored: int = 0
    norm: float = 0.0
    """``‖ΔW‖``; 0 where no difference was formed."""
    relative_norm: float = 0.0
    """``‖ΔW‖ / ‖W‖``."""
    energy: float = 0.0
    """Share of ``‖ΔW‖²`` in the singular values kept."""
    error: float = 0.0
    """``‖ΔW - B·A‖ / ‖ΔW‖``, of the factors as they are stored."""
    optimal_error_lower_bound: float = 0.0
    """No update of this rank has a smaller error: certified."""
    method: str = ""
    """``krylov float32``, ``krylov float64`` or ``gram``."""
    steps: int = 0
    """Passes over ``ΔW`` that the method took."""

    def to_dict(self) -> dict[str, Any]:
        """Return what there is to say of it, as plain data."""
        row = asdict(self)
        if self.outcome == "extracted":
            del row["reason"]
            return row
        formed = {"norm": self.norm or None, "relative_norm": self.relative_norm or None}
        return {"tensor": self.module} | {name: row[name] for name in OF_TENSORS} | formed


@dataclass(frozen=True, slots=True)
class UnmatchedRow:
    """A tensor of one model that was compared with none of the other."""

    tensor: str
    side: str
    """``base`` or ``tuned``."""
    shape: tuple[int, ...]
    params: int
    reason: str


@dataclass(frozen=True, slots=True)
class Compared:
    """How much of two models an extraction has compared: the shares of their parameters."""

    base: float = 1.0
    tuned: float = 1.0


@dataclass(slots=True)
class ExtractReport(Document):
    """What an extraction did."""

    base: str
    tuned: str
    policy: str
    tolerance: float
    chance: float
    rows: Sequence[ExtractRow]
    params: int = 0
    nbytes: int = 0
    """Size of the adapter's tensor file."""
    notes: Sequence[str] = ()
    unmatched: Sequence[UnmatchedRow] = ()
    compared: Compared = field(default_factory=Compared)
    arguments: str = ""
    seconds: float = 0.0
    """Not in the file: the same inputs give the same bytes."""
    extracted: list[ExtractRow] = field(init=False)

    def __post_init__(self) -> None:
        self.extracted = [row for row in self.rows if row.outcome == "extracted"]

    @property
    def error(self) -> float:
        """Relative error of everything that was extracted, as it is stored."""
        return error(self.extracted)

    @property
    def bound(self) -> float:
        """The certified lower bound of that error, at these ranks."""
        return _bound(self.extracted)

    @property
    def model_error(self) -> float:
        """Relative error of all that was compared: what changed and was left out counts in full.

        Nothing is known of the change of what is in one model only.
        """
        losses = {"carried": 0.0, "left out": 1.0}
        return total(
            (row.norm, losses.get(row.outcome, row.error))
            for row in self.rows
            if row.outcome == "extracted" or row.outcome in losses
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, as `report.schemas` describes it."""
        others = [row for row in self.rows if row.outcome not in ("extracted", "unchanged")]
        return {
            "schema": SCHEMA,
            "command": "extract",
            "policy": self.policy,
            "base": self.base,
            "tuned": self.tuned,
            "arguments": self.arguments,
            "bound_tolerance": self.tolerance,
            "failure_probability": self.chance,
            "totals": {
                "modules": len(self.extracted),
                "outcomes": outcomes(self.rows),
                "error": self.error,
                "optimal_error_lower_bound": self.bound,
                "energy": _energy(self.extracted),
                "whole_model_error": self.model_error,
                "compared_base": self.compared.base,
                "compared_tuned": self.compared.tuned,
                "relative_norm": _relative(self.extracted),
                "params_after": self.params,
                "bytes_after": self.nbytes,
            },
            "modules": [row.to_dict() for row in self.extracted],
            "tensors": [row.to_dict() for row in others],
            "unchanged": [row.module for row in self._named("unchanged")],
            "unmatched_tensors": [asdict(row) for row in self.unmatched],
            "notes": list(self.notes),
        }

    def table(self, style: str) -> str:
        """Return the modules as a table, repeated layers in one line, the worst first."""
        groups = grouped(self.extracted, _key)
        groups.sort(key=lambda rows: -error(rows))
        lines = [_line(rows, collapse([row.module for row in rows])) for rows in groups]
        lines.append(_line(self.extracted, f"total of {len(self.extracted)} modules"))
        headers = (
            "module",
            "shape",
            "rank",
            "‖ΔW‖/‖W‖",
            "energy",
            "error",
            "best possible ≥",
            "method",
        )
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return the totals in sentences."""
        lines = [
            f"error {percent(self.error)} as written; no adapter of these ranks has less than"
            f" {percent(self.bound)} (but for a chance of {self.chance:.0e})",
            self._whole(),
            f"{self.params:,} parameters, {size(self.nbytes)}, {self.seconds:.1f} s",
        ]
        if equal := self._named("unchanged"):
            lines.append(f"unchanged, bit for bit: {len(equal)} tensors")
        for outcome, title in (("carried", "carried whole"), ("left out", "changed and left out")):
            rows = self._named(outcome)
            for reason in dict.fromkeys(row.reason for row in rows):
                same = [row for row in rows if row.reason == reason]
                weight = size(sum(row.bytes_before for row in same))
                share = _share(same, self.rows)
                why = f" ({reason})" if reason else ""
                lines.append(
                    f"{title}{why}: {_names(same)}, {weight}, {percent(share)} of ‖ΔW‖² of all"
                )
        if bad := self._named("not finite"):
            lines.append(f"not finite, left out: {_names(bad)}")
        for side in ("base", "tuned"):
            found = [row for row in self.unmatched if row.side == side]
            for reason in dict.fromkeys(row.reason for row in found):
                names = [row.tensor for row in found if row.reason == reason]
                title = "the base" if side == "base" else "the tuned model"
                lines.append(f"unmatched in {title} ({label(reason)}): {_listed(names)}")
        return joined([*lines, *remarks({}, self.notes)])

    def _whole(self) -> str:
        """Return what the error of the model is, and of how much of it."""
        if not self.unmatched:
            return f"error of the whole model {percent(self.model_error)}, all that changed counted"
        params = sum(row.params for row in self.unmatched)
        return (
            f"error of what both models have {percent(self.model_error)}, all that changed there"
            f" counted: {percent(self.compared.base)} of the base's parameters and"
            f" {percent(self.compared.tuned)} of the tuned model's; {len(self.unmatched)} unmatched"
            f" tensors of {params:,} parameters are in no error"
        )

    def _named(self, outcome: str) -> list[ExtractRow]:
        return [row for row in self.rows if row.outcome == outcome]


def row_of(data: Mapping[str, Any]) -> ExtractRow:
    """Return a row that was kept as plain data."""
    return ExtractRow(**{**data, "shape": tuple(data["shape"])})


def _line(rows: Sequence[ExtractRow], title: str) -> list[str]:
    same = len({row.shape for row in rows}) == 1
    return [
        title,
        shape(rows[0].shape) if same else "",
        span(row.rank_after for row in rows),
        percent(_relative(rows)),
        percent(_energy(rows)),
        percent(error(rows)),
        percent(_bound(rows)),
        ", ".join(sorted({row.method for row in rows})),
    ]


def _key(row: ExtractRow) -> tuple[str, tuple[int, ...]]:
    return template(row.module), row.shape


def _energy(rows: Sequence[ExtractRow]) -> float:
    return kept((row.norm, row.energy) for row in rows)


def _bound(rows: Sequence[ExtractRow]) -> float:
    return total((row.norm, row.optimal_error_lower_bound) for row in rows)


def _relative(rows: Sequence[ExtractRow]) -> float:
    base = math.hypot(*(row.norm / row.relative_norm for row in rows if row.relative_norm))
    return math.hypot(*(row.norm for row in rows)) / base if base else 0.0


def _share(rows: Sequence[ExtractRow], every: Sequence[ExtractRow]) -> float:
    whole = math.hypot(*(row.norm for row in every))
    return (math.hypot(*(row.norm for row in rows)) / whole) ** 2 if whole else 0.0


def _names(rows: Sequence[ExtractRow]) -> str:
    return _some([collapse([row.module for row in same]) for same in grouped(rows, _key)])


def _listed(names: Sequence[str]) -> str:
    return _some([collapse(same) for same in grouped(names, template)])


def _some(groups: Sequence[str]) -> str:
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return ", ".join(map(label, groups[:5])) + more
