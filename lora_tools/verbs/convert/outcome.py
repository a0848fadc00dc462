"""What a conversion did to each module, as data and as text."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.names import collapse, template
from lora_tools.report import Document, grouped, percent, section, size, table, total
from lora_tools.text import joined, label

if TYPE_CHECKING:
    from lora_tools.update import Update

SCHEMA = "lora-tools/convert/1"


@dataclass(frozen=True, slots=True)
class Row:
    """One module: what became of it. Errors are relative Frobenius norms."""

    module: str
    stem: str
    """What its tensors are called in the file, without their suffixes."""
    shape: tuple[int, ...]
    rank: int
    rank_stored: int
    """The rank of the factors in the file: larger than ``rank`` where zeros fill them up."""
    scale_before: float
    scale_after: float
    norm: float
    """``||dW||_F``, with the scale."""
    error: float
    """``||dW - dW'||_F / ||dW||_F``, of the factors as they are stored."""
    outcome: str
    """``kept``, bit for bit; ``padded`` with zeros; ``rescaled``; ``refactored``, if no pair;
    ``reduced`` to the rank that the update has, which is less than that of the stacked factors;
    ``shrunk``, if it was asked for; ``zero``, if it was shrunk and is all zeros."""
    rank_kept: int
    """The rank without the zeros that may fill it up."""
    optimal_error: float = 0.0
    """The least error that any update of the rank kept can have (Eckart and Young 1936)."""


class Change(NamedTuple):
    """A module's update as it is written, and the row that describes it."""

    module: str
    update: "Update"
    row: Row


@dataclass(slots=True)
class Outcome(Document):
    """What a conversion did: fills up while the changes pass through `watch`."""

    source: str
    source_format: str
    target_format: str
    policy: str = ""
    """How ranks were lowered on the way, in words; empty if they were not."""
    arguments: str = ""
    nbytes: tuple[int, int] = (0, 0)
    """Size of the tensor file, before and after."""
    carried: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What was left out because it was asked for, by kind."""
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
        """Return the outcome as plain data, in the schema that `docs/report.md` describes."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "from": self.source_format,
            "to": self.target_format,
            "policy": self.policy,
            "arguments": self.arguments,
            "totals": {
                "modules": len(self.rows),
                "error": self.error,
                "optimal_error": self.optimal_error,
                "bytes_before": self.nbytes[0],
                "bytes_after": self.nbytes[1],
                "seconds": round(self.seconds, 3),
            },
            "modules": [asdict(row) for row in self.rows],
            "carried": dict(self.carried),
            "dropped": {kind: list(names) for kind, names in self.dropped.items()},
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Return the outcome as Markdown."""
        title = f"Converted by `lora-tools convert` from {self.source_format}{self._policy}."
        return section(title, self.arguments, self.summary())

    @property
    def _policy(self) -> str:
        return f", {self.policy}" if self.policy else ""

    def table(self, style: str) -> str:
        """Return the modules as a table."""
        lines = []
        for group in grouped(self.rows, _key):
            row = group[0]
            change = f"{row.scale_before:.4g} → {row.scale_after:.4g}"
            same = row.scale_before == row.scale_after
            lines.append(
                (
                    collapse([row.module for row in group]),
                    len(group),
                    "×".join(map(str, row.shape)),
                    row.rank if row.rank == row.rank_stored else f"{row.rank} → {row.rank_stored}",
                    f"{row.scale_after:.4g}" if same else change,
                    row.outcome,
                    percent(total((row.norm, row.error) for row in group)),
                )
            )
        headers = ("module", "count", "shape", "rank", "scale", "factors", "error")
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return the totals in sentences."""
        counts = {
            outcome: sum(row.outcome == outcome for row in self.rows)
            for outcome in ("kept", "padded", "rescaled", "refactored", "reduced", "shrunk", "zero")
        }
        made = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        best = f" (best possible at these ranks {percent(self.optimal_error)})"
        best = best if self.policy else ""
        lines = [
            f"{self.source_format} → {self.target_format}{self._policy}: {len(self.rows)} modules,"
            f" {made}",
            f"error {percent(self.error)} as written{best},"
            f" file {size(self.nbytes[0])} → {size(self.nbytes[1])}, {self.seconds:.1f} s",
        ]
        lines += [f"dropped: {len(names)} × {kind}" for kind, names in self.dropped.items()]
        kinds = list(self.carried.values())
        lines += [f"carried over: {kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
        lines += [f"not copied: {label(name)} ({why})" for name, why in self.left_out.items()]
        return joined([*lines, *(f"note: {note}" for note in self.notes)])


def _key(row: Row) -> tuple[object, ...]:
    scales = (row.scale_before, row.scale_after)
    return template(row.module), row.shape, row.rank, row.rank_stored, scales, row.outcome
