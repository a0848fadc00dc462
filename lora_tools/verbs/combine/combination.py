"""A combination before it is computed, and its report."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_tools.report import Change, Document, Report, section
from lora_tools.rewrite import Rewrite, Source
from lora_tools.rewrite.source import Sum
from lora_tools.text import joined
from lora_tools.verbs.combine.contributions import Contribution, Pair, sentences
from lora_tools.verbs.combine.extras import Extras
from lora_tools.verbs.combine.measured import Measured, Sums
from lora_tools.verbs.combine.weights import Weights

SCHEMA = "lora-tools/combine/1"

ROUNDED = 1e-6
"""An error from which on a sum without a policy is said to be rounded."""


@dataclass(frozen=True, slots=True)
class Combined(Document):
    """The report of a combination: that of the rewrite, and what each adapter contributes."""

    report: Report
    paths: tuple[str, ...]
    weights: tuple[float, ...]
    rows: tuple[Contribution, ...]

    def remark(self, notes: Iterable[str]) -> None:
        """Add what a person should know, too."""
        self.report.remark(notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, in the schema that `docs/report.md` describes."""
        adapters = [
            {"path": path, "weight": weight}
            for path, weight in zip(self.paths, self.weights, strict=True)
        ]
        return self.report.to_dict() | {
            "schema": SCHEMA,
            "adapters": adapters,
            "contributions": [row.to_dict() for row in self.rows],
            "conflicts": list(sentences(self.rows)),
        }

    def table(self, style: str) -> str:
        """Return the modules as a table, repeated layers in one line."""
        return self.report.table(style)

    def summary(self) -> str:
        """Return the totals in sentences, then where adapters fight."""
        report = self.report
        lines = [report.summary(), *sentences(self.rows)]
        if not report.policy and report.error > ROUNDED:
            lines.append("rounded to the stored dtypes: --dtype float32 keeps the sum exactly")
        return joined(line for text in lines for line in text.split("\n"))

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        title = f"Made by `lora-tools combine` of {len(self.paths)} adapters."
        tables = (self.table("pipe"),) if self.report.policy else ()
        return section(title, self.report.arguments, self.summary(), *tables)


@dataclass(frozen=True, slots=True)
class Combination:
    """A combination before it is computed: every shape is known, and how the adapters lie."""

    rewrite: Rewrite
    extras: Extras
    weights: Weights
    rows: tuple[Contribution, ...]
    policy: str = ""

    def __iter__(self) -> Iterator[Change]:
        return iter(self.rewrite)

    @property
    def source(self) -> Source:
        """What is rewritten: the sums."""
        return self.rewrite.source

    def report(self, began: float | None = None) -> Combined:
        """Return the report, with all that is known before the combination is computed."""
        report = self.rewrite.report("combine", self.policy, began)
        paths = tuple(str(adapter.path) for adapter in self.source.adapters)
        return Combined(report, paths, self.weights.adapters, self.rows)


def contributions(sums: Sums) -> tuple[Contribution, ...]:
    """Return what each adapter contributes to each module."""
    found = []
    for name, module in sums.modules.items():
        origin = sums.source.origins[name]
        assert isinstance(origin, Sum)
        found.append(_contribution(name, tuple(term.number for term in origin.terms), module))
    return tuple(found)


def _angles(ends: np.ndarray) -> tuple[float, float] | None:
    least, most = ends.tolist()
    return None if math.isnan(least) else (least, most)


def _contribution(name: str, adapters: tuple[int, ...], module: Measured) -> Contribution:
    inner, columns, rows = module.summands
    norms = module.summands.norms
    pairs = tuple(
        Pair(
            (adapters[i], adapters[j]),
            float(inner[i, j]) / norms[i] / norms[j],
            _angles(columns[i, j]),
            _angles(rows[i, j]),
        )
        for j in range(len(adapters))
        for i in range(j)
        if norms[i] and norms[j]
    )
    return Contribution(name, adapters, norms, module.norm, pairs)
