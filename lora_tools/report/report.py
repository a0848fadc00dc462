"""What was done to each module and what it cost, for verbs that write updates anew."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.names import collapse, template
from lora_tools.report.document import Document, grouped, remarks, removals, section
from lora_tools.report.figures import error, outcomes, percent, removed_shares, size, total
from lora_tools.report.markdown import plain
from lora_tools.report.modules import ranks_table, scales_table
from lora_tools.report.row import OUTCOMES, Row
from lora_tools.report.table import table
from lora_tools.text import joined, label

if TYPE_CHECKING:
    from lora_tools.update import Update

SCHEMA = "lora-tools/report/3"


class Change(NamedTuple):
    """A module's new update and the row that describes it."""

    module: str
    update: "Update"
    row: Row


class Projected(NamedTuple):
    """What a projection took from the modules of an adapter."""

    other: str
    """The adapter whose directions were taken out."""
    norms: Mapping[str, tuple[float, float]]
    """Of each module that both have: ``||dW||`` before, and of what was taken from it."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of each module's ``||dW||`` that was taken."""
        return {name: lost / whole if whole else 0.0 for name, (whole, lost) in self.norms.items()}

    @property
    def share(self) -> float:
        """The share of the ``||dW||`` of all these modules."""
        return total((whole, self.shares[name]) for name, (whole, _) in self.norms.items())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "orthogonal_to": self.other,
            "projected_share": self.share,
            "projected_out": self.shares,
        }

    def lines(self) -> Iterator[str]:
        """Yield in words what it cost."""
        yield (
            f"orthogonal to {label(self.other)}: {percent(self.share)} of ‖ΔW‖ taken from"
            f" {len(self.norms)} modules"
        )
        for names in grouped(self.norms, template):
            part = Projected(self.other, {name: self.norms[name] for name in names})
            yield f"taken from {label(collapse(names))}: {percent(part.share)}"


@dataclass(slots=True)
class Report(Document):
    """What a command did: fills up while the changes pass through `watch`."""

    command: str
    policy: str = ""
    """How ranks were lowered, in words; empty if they were not."""
    source: str = ""
    source_format: str = ""
    target_format: str = ""
    arguments: str = ""
    """The exact command line, if there was one."""
    params: tuple[int, int] = (0, 0)
    """Number of elements of all tensors, before and after."""
    nbytes: tuple[int, int] = (0, 0)
    """Size of the tensor file, before and after."""
    carried: Mapping[str, str] = field(default_factory=dict)
    """Tensors that were copied unchanged, and what they are."""
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What was left out because it was asked for, by feature."""
    removed: Mapping[str, float] = field(default_factory=dict)
    """The norms of the updates of modules that were left out because it was asked for."""
    projected: Projected | None = None
    """What was projected out of the updates before anything else."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files beside the adapter and header fields that were not copied, and why."""
    notes: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def watch(self, changes: Iterable[Change]) -> Iterator[tuple[str, "Update"]]:
        """Pass the updates through and keep their rows."""
        for change in changes:
            self.rows.append(change.row)
            self.seconds = time.monotonic() - self.started
            yield change.module, change.update

    def remark(self, notes: Iterable[str]) -> None:
        """Add what a person should know, too."""
        self.notes += tuple(notes)

    @property
    def error(self) -> float:
        """Relative error of the whole adapter as it is stored."""
        return error(self.rows)

    @property
    def optimal_error(self) -> float:
        """The least relative error possible at these ranks."""
        return total((row.norm, row.optimal_error) for row in self.rows)

    @property
    def bound(self) -> float | None:
        """A certified lower bound of `optimal_error`; None where that is exact."""
        bounds = [row.optimal_error_lower_bound for row in self.rows]
        if all(bound is None for bound in bounds):
            return None
        pairs = zip(self.rows, bounds, strict=True)
        return total((r.norm, r.optimal_error if b is None else b) for r, b in pairs)

    def removed_shares(self) -> dict[str, float]:
        """Return the share of the source's ``||dW||`` that each module had that was removed."""
        return removed_shares(self.removed, (row.norm for row in self.rows if row.rank_after))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, as `report.schemas` describes it."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "policy": self.policy,
            "source": self.source,
            "source_format": self.source_format,
            "target_format": self.target_format,
            "arguments": self.arguments,
            "totals": {
                "modules": len(self.rows),
                "outcomes": outcomes(self.rows),
                "error": self.error,
                "optimal_error": self.optimal_error,
                "params_before": self.params[0],
                "params_after": self.params[1],
                "bytes_before": self.nbytes[0],
                "bytes_after": self.nbytes[1],
                "seconds": round(self.seconds, 3),
            },
            "modules": [asdict(row) for row in self.rows],
            "carried": dict(self.carried),
            "dropped": {feature: list(names) for feature, names in self.dropped.items()},
            "removed": self.removed_shares(),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        } | (self.projected.to_dict() if self.projected else {})

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        how = f" ({plain(self.policy)})" if self.policy else ""
        title = f"Made by `lora-tools {self.command}`{self._formats(' from ')}{how}."
        tables = (self.table("pipe"),) if self.policy else ()
        return section(title, self.arguments, self.summary(), *tables)

    def table(self, style: str) -> str:
        """Return the modules as a table, repeated layers in one line.

        Of ranks, the worst first, where a policy lowered them; else of scales.
        """
        headers, lines = ranks_table(self.rows) if self.policy else scales_table(self.rows)
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return the totals in sentences."""
        lines = [self._made()] if self.source_format != self.target_format else []
        best = f" (best possible at these ranks {percent(self.optimal_error)})"
        lines.append(f"error {percent(self.error)} as written{best if self.policy else ''}")
        if self.bound is not None:
            lines.append(
                f"no adapter of these ranks has less than {percent(self.bound)} (but for a chance"
                " of 1e-06): some modules were sketched"
            )
        lines.append(
            f"parameters {self.params[0]:,} → {self.params[1]:,},"
            f" file {size(self.nbytes[0])} → {size(self.nbytes[1])}, {self.seconds:.1f} s"
        )
        rows = self.rows
        if self.policy and rows and all(row.rank_after == row.rank_before for row in rows):
            lines.append("no rank fell")
        stored = sorted({row.rank_stored for row in rows if row.rank_stored > row.rank_after})
        if stored:
            lines.append(f"filled up with zeros to rank {', '.join(map(str, stored))}")
        zeros = [row.module for row in rows if row.outcome == "zero"]
        for title, names in (("all zero", zeros), ("carried over", _kinds(self.carried))):
            if names:
                lines.append(f"{title}: {', '.join(map(label, names))}")
        lines += [f"dropped: {len(names)} × {feature}" for feature, names in self.dropped.items()]
        lines += removals(self.removed_shares())
        lines += self.projected.lines() if self.projected else ()
        return joined([*lines, *remarks(self.left_out, self.notes)])

    def _formats(self, before: str) -> str:
        if self.source_format == self.target_format:
            return ""
        return f"{before}{self.source_format} → {self.target_format}"

    def _made(self) -> str:
        counts = outcomes(self.rows)
        made = ", ".join(
            f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if outcome in counts
        )
        how = f", {self.policy}" if self.policy else ""
        return f"{self._formats('')}{how}: {len(self.rows)} modules, {made}"


def _kinds(carried: Mapping[str, str]) -> list[str]:
    kinds = list(carried.values())
    return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
