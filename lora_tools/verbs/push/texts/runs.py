"""The readable runs of binary data, as `strings` prints them."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lora_tools.verbs.push.texts.text import LIMIT, Text, pieces

CHUNK = 1 << 20
RUN = re.compile(rb"[\t\n\r -~]{8,}|(?:[\t\n\r -~]\0){8,}|(?:\0[\t\n\r -~]){8,}")
"""ASCII, and the same in UTF-16 of either order."""


def runs(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the readable runs of a file."""
    while data := file.read(CHUNK):
        # A run that a chunk would cut is read to its end.
        while len(data) < LIMIT and (more := file.read(1)):
            data += more
            if not (more.isascii() and (more.isspace() or more.decode().isprintable())):
                break
        yield from runs_of(data, "its binary data")


def runs_of(data: bytes, place: str) -> Iterator[Text]:
    """Yield the readable runs of bytes."""
    for match in RUN.finditer(data):
        yield from pieces([match[0].replace(b"\0", b"").decode("ascii")], place)
