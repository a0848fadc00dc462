"""What a merge did: per tensor, in total, in words, and as data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_tools.linalg.tally import Tally
from lora_tools.matching import Swap, listed
from lora_tools.merging import Outcome, TensorPlan
from lora_tools.names import collapse, template
from lora_tools.report import (
    NONE,
    Document,
    code,
    error,
    grouped,
    outcomes,
    percent,
    remarks,
    removals,
    removed_shares,
    section,
    shape,
    size,
    span,
    table,
)
from lora_tools.text import joined, label

SCHEMA = "lora-tools/merge/2"

WORRYING = 0.05
"""The share of an update's norm that rounding may take before it is worth a warning."""


@dataclass(frozen=True, slots=True)
class MergeRow:
    """One tensor that is not a copy of the base's."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    outcome: Outcome
    module_scales: Mapping[str, float]
    """The modules that were added, and the scale times the weight that was asked for."""
    norm: float
    """``||dW||_F``."""
    error: float
    """``||(W' - W) - dW||_F / ||dW||_F``: what rounding to the stored type took."""
    updated_elements: int
    """Elements whose update is not zero."""
    lost_to_rounding: float
    """The share of them that kept their value, because the update was below half a step."""


def row(entry: TensorPlan, tally: Tally) -> MergeRow:
    """Return the row of an entry."""
    norm = math.sqrt(tally.update)
    return MergeRow(
        entry.key,
        entry.spec.shape,
        entry.spec.dtype,
        entry.outcome,
        dict(entry.modules),
        norm,
        math.sqrt(tally.error) / norm if norm else 0.0,
        tally.updated,
        tally.lost_to_rounding,
    )


@dataclass(slots=True)
class Merged(Document):
    """The report of a merge."""

    base: str
    adapters: tuple[tuple[str, float], ...]
    """Paths and weights."""
    rows: list[MergeRow] = field(default_factory=list)
    copied: int = 0
    """Tensors whose bytes are the base's."""
    nbytes: int = 0
    """Size of the weights written."""
    shards: int = 0
    resumed: int = 0
    """Shards that an earlier, interrupted call had finished."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefixes: Mapping[str, tuple[Swap, ...]] = field(default_factory=dict)
    """What changes before the names of each adapter."""
    removed: Mapping[str, float] = field(default_factory=dict)
    """The norms of the updates of modules that were left out because it was asked for."""
    arguments: str = ""
    seconds: float = 0.0

    @property
    def error(self) -> float:
        """The share of the norm of all updates that rounding took."""
        return error(self.rows)

    @property
    def lost(self) -> float:
        """The share of all elements with an update that kept their value."""
        return _lost(self.rows)

    @property
    def warning(self) -> str | None:
        """What a person should hear if rounding took a good part of the update."""
        if self.error <= WORRYING:
            return None
        kinds = ", ".join(sorted({row.dtype for row in self.rows if row.norm}))
        return (
            f"rounding to {kinds} took {percent(self.error)} of the update, and"
            f" {percent(self.lost)} of its elements were lost to it: the update is fine"
            " compared with the steps of the type. Write a wider one (--dtype float32), or serve"
            " the adapter unmerged."
        )

    def removed_shares(self) -> dict[str, float]:
        """Return the share of ``||dW||`` that each module had that was removed."""
        return removed_shares(self.removed, (row.norm for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, as `report.schemas` describes it."""
        return {
            "schema": SCHEMA,
            "command": "merge",
            "base": self.base,
            "adapters": [{"path": path, "weight": weight} for path, weight in self.adapters],
            "arguments": self.arguments,
            "totals": {
                "tensors": len(self.rows) + self.copied,
                "outcomes": {**outcomes(self.rows), "copied": self.copied},
                "error": self.error,
                "lost_to_rounding": self.lost,
                "bytes_after": self.nbytes,
                "shards": self.shards,
                "resumed_shards": self.resumed,
                "seconds": round(self.seconds, 3),
            },
            "warning": self.warning,
            "tensors": [asdict(row) for row in self.rows],
            "removed": self.removed_shares(),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "prefixes": listed(self.prefixes),
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown, a section of a model card."""
        names = ", ".join(f"{code(Path(path).name)} × {weight:g}" for path, weight in self.adapters)
        title = f"{code(Path(self.base).name)} with {names} merged into it by `lora-tools merge`."
        return section(title, self.arguments, self.summary(), self.table("pipe"))

    def table(self, style: str) -> str:
        """Return the tensors as a table, repeated layers in one line."""
        rows = [row for row in self.rows if row.outcome != "cast"]
        groups = grouped(rows, _key)
        lines = [_line(collapse([row.tensor for row in group]), group) for group in groups]
        lines.append(_line(f"total of {len(rows)} tensors", rows))
        lines[-1][1:4] = ["", "", ""]
        headers = ("tensor", "shape", "dtype", "outcome", "scale", "error", "lost to rounding")
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return the totals in sentences."""
        cast = sum(row.outcome == "cast" for row in self.rows)
        rest = f", {cast} others rounded to another type" if cast else ""
        lines = [
            f"error {percent(self.error)} as written: what rounding took of the update;"
            f" {percent(self.lost)} of its elements lost to rounding",
            f"{len(self.rows) - cast} tensors changed, {self.copied} copied byte for byte{rest}",
            f"{size(self.nbytes)} in {self.shards} files, {self.seconds:.1f} s",
        ]
        removed = removals(self.removed_shares())
        return joined([*lines, *removed, *remarks(self.left_out, self.notes)])

    def to_text(self) -> str:
        """Return it for a terminal. The card does not say how often a merge was started."""
        resumed = f"\n{self.resumed} files were finished before" if self.resumed else ""
        return f"{Document.to_text(self)}{resumed}"

    def plan(self) -> str:
        """Return what is known before anything is computed, in sentences."""
        lines = [
            f"{self.copied} tensors copied byte for byte;"
            f" {size(self.nbytes)} in {self.shards} files",
            *(f"removed: {label(collapse(g))}" for g in grouped(self.removed, template)),
        ]
        return joined([*lines, *remarks(self.left_out, self.notes)])


def _line(title: str, rows: list[MergeRow]) -> list[str]:
    return [
        title,
        shape(rows[0].shape) if rows else "",
        rows[0].dtype if rows else "",
        rows[0].outcome if rows else "",
        span({scale for row in rows for scale in row.module_scales.values()}, ".4g"),
        percent(error(rows)) if any(row.norm for row in rows) else NONE,
        percent(_lost(rows)) if any(row.updated_elements for row in rows) else NONE,
    ]


def _key(row: MergeRow) -> tuple[str, tuple[int, ...], str, str]:
    return template(row.tensor), row.shape, row.dtype, row.outcome


def _lost(rows: list[MergeRow]) -> float:
    updated = sum(row.updated_elements for row in rows)
    lost = math.fsum(row.updated_elements * row.lost_to_rounding for row in rows)
    return lost / updated if updated else 0.0
