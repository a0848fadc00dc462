"""The modules of a rewrite as tables, repeated layers in one line."""

from collections.abc import Sequence
from typing import TypeAlias

from lora_tools.names import collapse, template
from lora_tools.report.cells import shape, span
from lora_tools.report.document import grouped
from lora_tools.report.figures import error, kept, percent, total
from lora_tools.report.row import Row

Table: TypeAlias = tuple[tuple[str, ...], list[list[str]]]
"""Headers, and the cells of each line."""

TIMES = ("before", "after")


def ranks_table(rows: Sequence[Row]) -> Table:
    """Return what lower ranks cost, the worst first, and the total."""
    groups = grouped(rows, lambda row: (template(row.module), row.shape))
    groups.sort(key=lambda group: -error(group))
    lines = [
        [
            collapse([row.module for row in group]),
            shape(group[0].shape),
            *_ranks(group),
        ]
        for group in groups
    ]
    lines.append([f"total of {len(rows)} modules", "", *_ranks(rows)])
    return (
        ("module", "shape", "rank", "energy", "error", "best possible", "σ₁", "σ discarded"),
        lines,
    )


def scales_table(rows: Sequence[Row]) -> Table:
    """Return at which scales updates are written, and whether their factors kept their bits."""
    lines = []
    for group in grouped(rows, _scales):
        row = group[0]
        same = row.scale_before == row.scale
        change = f"{row.scale_before:.4g} → {row.scale:.4g}"
        lines.append(
            [
                collapse([row.module for row in group]),
                str(len(group)),
                shape(row.shape),
                " → ".join(dict.fromkeys(map(str, (row.rank_before, row.rank_stored)))),
                f"{row.scale:.4g}" if same else change,
                row.outcome,
                percent(error(group)),
            ]
        )
    return ("module", "count", "shape", "rank", "scale", "outcome", "error"), lines


def _ranks(rows: Sequence[Row]) -> list[str]:
    before, after = (span(getattr(row, f"rank_{when}") for row in rows) for when in TIMES)
    return [
        f"{before} → {after}",
        percent(kept((row.norm, row.energy) for row in rows)),
        percent(error(rows)),
        percent(total((row.norm, row.optimal_error) for row in rows)),
        f"{max((row.sigma_max or 0.0 for row in rows), default=0):.3g}",
        f"{max((row.sigma_discarded for row in rows), default=0):.3g}",
    ]


def _scales(row: Row) -> tuple[object, ...]:
    scales = (row.scale_before, row.scale)
    return template(row.module), row.shape, row.rank_before, row.rank_stored, scales, row.outcome
