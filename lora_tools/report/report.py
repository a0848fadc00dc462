"""What was done to each module and what it cost, for verbs that write updates anew."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.names import collapse, template
from lora_tools.report.document import Document, grouped, section
from lora_tools.report.figures import percent, size, total
from lora_tools.report.markdown import plain
from lora_tools.report.table import table
from lora_tools.text import joined, label

if TYPE_CHECKING:
    from lora_tools.update import Update

SCHEMA = "lora-tools/report/1"


@dataclass(frozen=True, slots=True)
class Row:
    """One module: its ranks and errors. Errors are relative Frobenius norms."""

    module: str
    shape: tuple[int, ...]
    rank_before: int
    rank_after: int
    rank_stored: int
    """The rank of the factors in the file: larger than ``rank_after`` where zeros fill them up."""
    norm: float
    """``||dW||_F``, with the scale."""
    energy: float
    """Share of ``||dW||_F ** 2`` in the singular values kept."""
    error: float
    """``||dW - dW'||_F / ||dW||_F``, of the factors as they are stored."""
    optimal_error: float
    """The least error that any update of this rank can have (Eckart and Young 1936)."""
    sigma_max: float
    sigma_discarded: float
    """The largest singular value that was given up; 0 if none."""
    outcome: str
    """``shrunk``; ``kept``, bit for bit; ``rewritten`` in another scale or type; or ``zero``."""


class Change(NamedTuple):
    """A module's new update and the row that describes it."""

    module: str
    update: "Update"
    row: Row


@dataclass(slots=True)
class Report(Document):
    """What a command did: fills up while the changes pass through `watch`."""

    command: str
    policy: str = ""
    source: str = ""
    arguments: str = ""
    """The exact command line, if there was one."""
    params: tuple[int, int] = (0, 0)
    """Number of elements of all tensors, before and after."""
    nbytes: tuple[int, int] = (0, 0)
    """Size of the tensor file, before and after."""
    carried: Mapping[str, str] = field(default_factory=dict)
    """Tensors that were copied unchanged, and what they are."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files beside the adapter that were not copied, and why."""
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

    @property
    def error(self) -> float:
        """Relative error of the whole adapter as it is stored."""
        return total((row.norm, row.error) for row in self.rows)

    @property
    def optimal_error(self) -> float:
        """The least relative error possible at these ranks."""
        return total((row.norm, row.optimal_error) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, in the schema that `docs/report.md` describes."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "policy": self.policy,
            "source": self.source,
            "arguments": self.arguments,
            "totals": {
                "modules": len(self.rows),
                "error": self.error,
                "optimal_error": self.optimal_error,
                "params_before": self.params[0],
                "params_after": self.params[1],
                "bytes_before": self.nbytes[0],
                "bytes_after": self.nbytes[1],
                "seconds": round(self.seconds, 3),
            },
            "modules": [asdict(row) for row in self.rows],
            "zero_modules": [row.module for row in self.rows if row.outcome == "zero"],
            "carried": dict(self.carried),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        title = f"Made by `lora-tools {self.command}` ({plain(self.policy)})."
        return section(title, self.arguments, self.summary(), self.table("pipe"))

    def table(self, style: str) -> str:
        """Return the modules as a table, repeated layers in one line, the worst first."""
        groups = [_Group(rows) for rows in grouped(self.rows, _key)]
        groups.sort(key=lambda group: -group.error)
        lines = [group.line() for group in groups]
        lines.append(_Group(self.rows).line(f"total of {len(self.rows)} modules"))
        headers = ("module", "shape", "rank", "energy", "error", "best", "σ₁", "first dropped")
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return the totals in sentences."""
        lines = [
            f"error {percent(self.error)} as written"
            f" (best possible at these ranks {percent(self.optimal_error)})",
            f"parameters {self.params[0]:,} → {self.params[1]:,},"
            f" file {size(self.nbytes[0])} → {size(self.nbytes[1])}, {self.seconds:.1f} s",
        ]
        if self.rows and all(row.rank_after == row.rank_before for row in self.rows):
            lines.append("no rank fell")
        stored = sorted({row.rank_stored for row in self.rows if row.rank_stored > row.rank_after})
        if stored:
            lines.append(f"filled up with zeros to rank {', '.join(map(str, stored))}")
        zeros = [row.module for row in self.rows if row.outcome == "zero"]
        for title, names in (("all zero", zeros), ("carried over", _kinds(self.carried))):
            if names:
                lines.append(f"{title}: {', '.join(map(label, names))}")
        lines += [f"not copied: {label(name)} ({why})" for name, why in self.left_out.items()]
        return joined([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share a line of the table."""

    rows: list[Row]

    @property
    def error(self) -> float:
        return total((row.norm, row.error) for row in self.rows)

    def line(self, title: str | None = None) -> list[str]:
        rows = self.rows
        best = total((row.norm, row.optimal_error) for row in rows)
        energy = 1 - total((row.norm, math.sqrt(max(1 - row.energy, 0))) for row in rows) ** 2
        after = sorted({row.rank_after for row in rows})
        before = sorted({row.rank_before for row in rows})
        return [
            title or collapse([row.module for row in rows]),
            "" if title else "×".join(map(str, rows[0].shape)),
            f"{_span(before)} → {_span(after)}",
            percent(energy),
            percent(self.error),
            percent(best),
            f"{max((row.sigma_max for row in rows), default=0):.3g}",
            f"{max((row.sigma_discarded for row in rows), default=0):.3g}",
        ]


def _key(row: Row) -> tuple[str, tuple[int, ...]]:
    return template(row.module), row.shape


def _span(values: list[int]) -> str:
    if not values:
        return "–"
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def _kinds(carried: Mapping[str, str]) -> list[str]:
    kinds = list(carried.values())
    return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
