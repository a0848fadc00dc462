"""Texts in pieces small enough for any pattern, none of which cuts a match in two."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 1 << 16
"""Short lines are searched together, up to so many characters."""

LONG = 2048
"""A longer line is searched in pieces: patterns that look ahead cost at most this at each place."""

MARGIN = 320
"""What neighbouring pieces share, on either side: more than any secret needs to be known by."""

LIMIT = 1 << 26
"""The most that is unpacked, or read at once, of one file, in bytes."""


class Text(NamedTuple):
    """A piece of a file's text."""

    text: str
    place: str = ""
    """Where it is, but for the line."""
    line: int = 0
    """Number of its first line, or 0 where lines do not count."""
    column: int = 0
    """Characters of that line that come before it."""
    begin: int = 0
    """Matches that start before this belong to the piece before, which knows what precedes them."""
    end: int | None = None
    """Matches that start from here on belong to the piece after."""
    entry: str | None = None
    """Key of the metadata that it is."""


def opened(content: Path | bytes) -> AbstractContextManager[BinaryIO]:
    """Open a file, or bytes as one."""
    return BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def pieces(
    chunks: Iterable[str], place: str = "", *, numbered: bool = False, entry: str | None = None
) -> Iterator[Text]:
    """Cut text, which comes in chunks, into pieces; holds no more than a block and a chunk."""
    held, line, column = "", 1, 0  # what is held begins at this line and column

    def cut(text: str, *, last: bool) -> Iterator[Text]:
        for start, stop, final in _windows(len(text)):
            yield Text(
                text[start:stop],
                place,
                line if numbered else 0,
                column + start,
                MARGIN if column + start else 0,
                None if final and last else stop - start - MARGIN,
                entry,
            )

    for chunk in chain(chunks, (None,)):
        held += chunk or ""
        while held and (chunk is None or len(held) > BLOCK):
            last = chunk is None and len(held) <= BLOCK
            stop = len(held) if last else held.rfind("\n", 0, BLOCK) + 1
            if not stop:
                yield from cut(held[:BLOCK], last=False)
                held, column = held[BLOCK - 2 * MARGIN :], column + BLOCK - 2 * MARGIN
                continue
            block, held = held[:stop], held[stop:]
            if not column and max(map(len, block.split("\n"))) <= LONG:
                yield Text(block, place, line if numbered else 0, entry=entry)
                line += block.count("\n")
                continue
            for found in _lines(block):
                yield from cut(found, last=True)
                line, column = line + found.count("\n"), 0


def _lines(block: str) -> Iterator[str]:
    start = 0
    while start < len(block):
        stop = block.find("\n", start) + 1 or len(block)
        yield block[start:stop]
        start = stop


def _windows(length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield begin and end of each piece, and whether it is the last."""
    start = 0
    while True:
        stop = min(start + LONG, length)
        yield start, stop, stop == length
        if stop == length:
            return
        start = stop - 2 * MARGIN
