"""Tables for terminals and for Markdown: whatever a cell holds stays in its cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_tools.report.figures import percent, size
from lora_tools.report.markdown import code, plain
from lora_tools.text import cut, label

PIPE = "pipe"
"""The style of tables in Markdown; that for a terminal is ``simple``."""


class Code(str):
    """A cell that Markdown shows as code. A string, so that a terminal shows it as any other."""

    __slots__ = ()


def table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    style: str = "simple",
    align: Sequence[str] | None = None,
) -> str:
    """Return rows as a table. Names are cut in the middle, and shown as they are."""
    from tabulate import tabulate  # takes a sixth of an inspect to import, and JSON needs none

    show = _in_markdown if style == PIPE else label
    cells = [[show(cell) for cell in row] for row in rows]
    return tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=align)


def ranks_table(ranks: Iterable[Mapping[str, Any]]) -> str:
    """Return the ``ranks`` of a report, what uniform ranks would cost; "" if there are none."""
    lines = [
        (
            row["rank_after"],
            size(row["bytes_after"]),
            percent(row["optimal_error"]),
            percent(row["allocated_error"]),
        )
        for row in ranks
    ]
    headers = ("rank", "size", "best possible", "allocated")
    return table(lines, headers, align=("right",) * 4) if lines else ""


def _in_markdown(cell: object) -> str:
    return code(cell).replace("|", "\\|") if isinstance(cell, Code) else plain(cut(str(cell)))
