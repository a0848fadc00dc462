"""Tables for terminals and for Markdown: whatever a cell holds stays in its cell."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_tools.report.figures import percent, size
from lora_tools.report.markdown import code, plain
from lora_tools.text import cut, label

PIPE = "pipe"
"""The style of tables in Markdown; that for a terminal is ``simple``."""
ROOM = 2
"""Columns are wider than their header by this."""


class Code(str):
    """A cell that Markdown shows as code. A string, so that a terminal shows it as any other."""

    __slots__ = ()


def table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    style: str = "simple",
    align: Sequence[str] | None = None,
) -> str:
    """Return rows as a table. Names are cut in the middle, and shown as they are.

    ``align`` has ``left``, the default, or ``right`` for each column.
    """
    show = _in_markdown if style == PIPE else label
    cells = [list(headers), *([show(cell) for cell in row] for row in rows)]
    sides = align or ["left"] * len(headers)
    columns = zip(*cells, strict=True)
    widths = [max([_width(head) + ROOM, *map(_width, column)]) for head, *column in columns]
    head, *lines = [list(map(_padded, row, widths, sides)) for row in cells]
    if style == PIPE:
        rule = "|".join(map(_pipe_rule, widths, sides))
        first, *rest = [f"| {' | '.join(row)} |" for row in (head, *lines)]
        return "\n".join([first, f"|{rule}|", *rest])
    rules = ["-" * width for width in widths]
    return "\n".join("  ".join(row).rstrip() for row in (head, rules, *lines))


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


def _padded(cell: str, width: int, side: str) -> str:
    room = " " * (width - _width(cell))
    return room + cell if side == "right" else cell + room


def _pipe_rule(width: int, side: str) -> str:
    dashes = "-" * (width + 1)
    return f"{dashes}:" if side == "right" else f":{dashes}"


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each letter of East Asia."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
