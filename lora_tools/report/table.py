"""Tables for terminals and for Markdown: whatever a cell holds stays in its cell."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from unicodedata import category, east_asian_width

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
    align: Sequence[str] = (),
) -> str:
    """Return rows as a table. Names are cut in the middle, and shown as they are.

    ``align``: "left", as columns are by default, or "right", of the first columns.
    """
    show = _in_markdown if style == PIPE else label
    cells = ([show(cell).strip() for cell in row] for row in rows)
    columns = zip(*chain([headers], cells), strict=True)
    sides = chain(align, repeat("left"))
    padded = [_column(*pair, style) for pair in zip(columns, sides, strict=False)]
    lines = zip(*padded, strict=True)
    if style == PIPE:
        return "\n".join(f"|{'|'.join(line)}|" for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _column(texts: Sequence[str], side: str, style: str) -> Iterator[str]:
    """Yield the header, the rule below it and the cells of a column, all of one width."""
    widths = [_width(text) for text in texts]
    room = max(widths[0] + 2, *widths)
    fills = (" " * (room - width) for width in widths)
    head, *cells = (
        text + fill if side == "left" else fill + text
        for text, fill in zip(texts, fills, strict=True)
    )
    if style != PIPE:
        yield from (head, "-" * room, *cells)
        return
    dashes = "-" * (room + 1)
    yield from (f" {head} ", f":{dashes}" if side == "left" else f"{dashes}:")
    yield from (f" {cell} " for cell in cells)


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        2 if east_asian_width(sign) in "WF" else category(sign) not in ("Mn", "Me") for sign in text
    )


def _in_markdown(cell: object) -> str:
    return code(cell).replace("|", "\\|") if isinstance(cell, Code) else plain(cut(str(cell)))
