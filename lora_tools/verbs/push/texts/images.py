"""What image files hold beside the picture: prompts, workflows, EXIF, XMP."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from lora_tools.errors import RefusedError
from lora_tools.verbs.push.texts.runs import runs_of
from lora_tools.verbs.push.texts.text import LIMIT, Text, pieces

PIXELS = (b"IDAT", b"fdAT", b"PLTE", b"IHDR", b"tRNS")
FRAMES = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")


def png(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the text chunks of a PNG file, where ComfyUI and others keep workflows.

    Compressed ones are unpacked, up to a limit for the file: `RefusedError` beyond it.
    """
    file.seek(8)
    left = LIMIT
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in PIXELS:
            file.seek(length + 4, 1)
            continue
        if length > LIMIT:
            raise _too_much(name, kind)
        data = file.read(length)
        file.seek(4, 1)  # the checksum
        for text, place in _chunk(kind, data, left, name):
            left -= len(text)
            yield from pieces([text], place, numbered=False)
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            yield from runs_of(data, f"chunk {kind.decode('latin-1')}")
        if kind == b"IEND":
            yield from runs_of(file.read(LIMIT), "data after the image")


def jpeg(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the comments of a JPEG file, EXIF and XMP among them."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:  # the picture
        length = int.from_bytes(head[2:], "big")
        data = file.read(max(length - 2, 0))
        if head[1] == 0xFE:
            yield from pieces([data.decode("utf-8", "replace")], "comment")
        elif 0xE0 <= head[1] <= 0xEF:
            yield from runs_of(data, "EXIF or XMP")


def webp(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the EXIF and XMP of a WebP file."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if kind in FRAMES:
            file.seek(length + length % 2, 1)
            continue
        if length > LIMIT:
            raise _too_much(name, kind)
        yield from runs_of(file.read(length + length % 2), "EXIF or XMP")


def _chunk(kind: bytes, data: bytes, left: int, name: str) -> Iterator[tuple[str, str]]:
    """Yield the text of a chunk and what it is called."""
    key, _, rest = data.partition(b"\0")
    place = f"text {key.decode('latin-1')}"
    if kind == b"tEXt":
        yield f"{key.decode('latin-1')} {_decoded(rest)}", place
    elif kind == b"zTXt":
        yield _decoded(_unpacked(rest[1:], left, name, kind)), place
    elif kind == b"iTXt":
        packed, (_, _, text) = rest[:1] == b"\1", (*rest[2:].split(b"\0", 2), b"", b"", b"")[:3]
        yield _decoded(_unpacked(text, left, name, kind) if packed else text), place


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unpacked(data: bytes, left: int, name: str, kind: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, max(left, 1))
    except zlib.error as error:
        raise RefusedError(
            f"{name}: its {kind.decode()} chunk is damaged ({error}) and cannot be searched"
        ).hint("Save the image again, without metadata, or leave it out with --exclude.") from error
    if unpacker.unconsumed_tail:
        raise _too_much(name, kind)
    return text


def _too_much(name: str, kind: bytes) -> RefusedError:
    return RefusedError(
        f"{name}: its {kind.decode('latin-1')} chunks hold more than {LIMIT >> 20} MiB, too much"
        " to be searched"
    ).hint("Save the image again, without metadata, or leave it out with --exclude.")
