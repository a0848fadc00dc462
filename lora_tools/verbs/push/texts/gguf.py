"""The texts of a GGUF file: its fields and the names of its tensors."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from lora_tools.errors import CheckpointError
from lora_tools.verbs.push.texts.text import LIMIT, Text, pieces

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a single value, by the number of its type."""

STRING, ARRAY = 8, 9
DEPTH = 4
"""Arrays of arrays of arrays: no field is deeper."""


def gguf(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield fields and names, without the package that reads tensors, of any quantisation.

    Raises `CheckpointError` for a header that is damaged.
    """
    try:
        file.seek(8)
        tensors, fields = _numbers(file, "<QQ")
        for _ in range(fields):
            key = _string(file)
            (kind,) = _numbers(file, "<I")
            for text in _texts(file, kind):
                yield from pieces([f"{key} {text}"], f"field {key}")
            yield from pieces([key], f"field {key}")
        for _ in range(tensors):
            tensor = _string(file)
            (dimensions,) = _numbers(file, "<I")
            file.seek(8 * dimensions + 12, 1)  # shape, type, offset
            yield from pieces([tensor], f"the name of tensor {tensor}")
    except (struct.error, KeyError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{name}: damaged, or not a GGUF file ({error})").hint(
            "Download or copy it again, or leave it out with --exclude."
        ) from error


def _texts(file: BinaryIO, kind: int, depth: int = 0) -> Iterator[str]:
    """Yield the strings of a value and pass over its numbers."""
    if kind == STRING:
        yield _string(file)
    elif kind == ARRAY and depth < DEPTH:
        inner, count = _numbers(file, "<IQ")
        if inner in SIZES:
            file.seek(SIZES[inner] * count, 1)
            return
        for _ in range(count):
            yield from _texts(file, inner, depth + 1)
    else:
        file.seek(SIZES[kind], 1)


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<Q")
    data = file.read(length) if length <= LIMIT else b""
    if len(data) < length:
        raise ValueError(f"a string of {length:,} bytes")
    return data.decode("utf-8", "replace")


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
