"""Text files in whatever encoding they are."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

SNIFFED = 1 << 13
"""Bytes from a file's start that tell what it is."""

CHUNK = 1 << 20

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"


def encoding(start: bytes) -> str | None:
    """Return the encoding of a text by its first bytes; None if it is no text.

    >>> encoding(b"a b"), encoding("a b".encode("utf-16-le")), encoding(bytes(range(9)))
    ('utf-8', 'utf-16-le', None)
    """
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    if b"\0" in start:
        even, odd = start[::2], start[1::2]
        for name, high, low in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
            if 2 * high.count(0) > len(high) and 10 * low.count(0) < len(low):
                return name
        return None
    controls = len(start) - len(start.translate(None, CONTROLS))
    return "utf-8" if 50 * controls <= len(start) else None


def decoded(file: BinaryIO) -> Iterator[str]:
    """Yield the text of a file in chunks: what is not UTF-8, nor marked as other, is latin-1."""
    start = file.read(CHUNK)
    name = encoding(start[:SNIFFED]) or "latin-1"
    decoder = codecs.getincrementaldecoder(name)("strict" if name == "utf-8" else "replace")
    while start:
        chunk = file.read(CHUNK)
        try:
            yield decoder.decode(start, not chunk)
        except UnicodeDecodeError:
            # The bytes that the decoder had kept for the next character come first.
            yield decoder.getstate()[0].decode("latin-1") + start.decode("latin-1")
            decoder.reset()
        start = chunk
