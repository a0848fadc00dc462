"""The header of a GGUF file, parsed within bounds: its counts and lengths are a stranger's."""

import math
import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from lora_tools.errors import CheckpointError
from lora_tools.files.fields import CODES, Field
from lora_tools.files.header import MAX_COUNT, MAX_HEADER
from lora_tools.files.location import Location

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Those whose layout this is; version 1 counted in 32 bits."""

ALIGNMENT = 32
"""What tensors begin at a multiple of, unless a field says otherwise."""

ALIGNED = "general.alignment"
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_ITEMS = 2_000_000
"""The most fields, tensors and elements of arrays in one header; a vocabulary has a quarter."""

KINDS = (
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "UINT32",
    "INT32",
    "FLOAT32",
    "BOOL",
    "STRING",
    "ARRAY",
    "UINT64",
    "INT64",
    "FLOAT64",
)
"""GGUF's types of fields, by number."""


class Block(NamedTuple):
    """A type of tensors: how many elements share how many bytes."""

    name: str
    elements: int
    nbytes: int


BLOCKS = {
    number: Block(*block)
    for number, block in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
    }.items()
}
"""GGUF's types of tensors, by number."""


class GGUFTensor(NamedTuple):
    """A tensor as the header describes it: its type, its shape in torch's order, its bytes."""

    block: Block
    shape: tuple[int, ...]
    start: int
    """From the start of the file."""
    stop: int


class GGUFHeader(NamedTuple):
    """All that a header says."""

    fields: dict[str, Field]
    tensors: dict[str, GGUFTensor]


def read_gguf_header(file: IO[bytes], size: int, path: Location) -> GGUFHeader:
    """Parse the header of an open file of ``size`` bytes; ``path`` is for the messages.

    Every count and length is held against the bytes that are left before anything is made of it:
    no more is read than the header, of at most `MAX_HEADER` bytes and `MAX_ITEMS` items. Raises
    `CheckpointError` for what is damaged, or made for big-endian machines.
    """
    if file.read(4) != MAGIC:
        raise _damaged(path, "it does not begin with GGUF")
    try:
        cursor = _Cursor(file, size)
        version = cursor.number("<I")
        if version and not version & 0xFFFF:
            raise CheckpointError(f"{path}: a GGUF file for big-endian machines").hint(
                "Convert the adapter again without --bigendian."
            )
        if version not in VERSIONS:
            raise ValueError(f"version {version}, where {VERSIONS[0]} and {VERSIONS[1]} are known")
        count, field_count = cursor.count(24), cursor.count(13)
        fields = _named(cursor.field() for _ in range(field_count))
        entries = _named(cursor.tensor() for _ in range(count))
        begin = cursor.position + -cursor.position % _alignment(fields)
        return GGUFHeader(fields, _placed(entries, begin, _alignment(fields), size))
    except CheckpointError:
        raise
    except (ValueError, struct.error) as error:
        raise _damaged(path, str(error)) from error


class _Cursor:
    """Reads a header from front to back, and nothing that would reach beyond its bounds."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size, self._items = file, min(size, MAX_HEADER), 0
        self.position = len(MAGIC)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self._size - self.position:
            raise ValueError(
                f"{count:,} bytes at {self.position:,}, where the header has"
                f" {self._size - self.position:,} left"
            )
        self.position += count
        return self._file.read(count)

    def number(self, code: str) -> Any:
        """Return the next number."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, least: int) -> int:
        """Return how many things of at least ``least`` bytes follow, somewhere."""
        count: int = self.number("<Q")
        self._items += count
        if count > (self._size - self.position) // least or self._items > MAX_ITEMS:
            raise ValueError(f"{count:,} items, which the header has no room for")
        return count

    def text(self) -> str:
        """Return the next string."""
        return self.take(self.number("<Q")).decode("utf-8")

    def field(self) -> tuple[str, Field]:
        """Return the next field and its name."""
        name, kind = self.text(), self._kind()
        if kind != "ARRAY":
            return name, Field(kind, self.text() if kind == "STRING" else self._values(kind, 1)[0])
        kind = self._kind()
        if kind == "ARRAY":
            raise ValueError(f"{name} is an array of arrays")
        count = self.count(8 if kind == "STRING" else struct.calcsize(CODES[kind]))
        if kind == "STRING":
            return name, Field("ARRAY STRING", [self.text() for _ in range(count)])
        return name, Field(f"ARRAY {kind}", self._values(kind, count))

    def tensor(self) -> tuple[str, tuple[Block, tuple[int, ...], int]]:
        """Return the next tensor's name, and its type, shape and offset."""
        name, dimensions = self.text(), self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions:,} dimensions")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        kind, offset = struct.unpack("<IQ", self.take(12))
        if kind not in BLOCKS:
            raise ValueError(f"{name} is of the unknown type {kind}")
        if math.prod(size or 1 for size in sizes) > MAX_COUNT:
            raise ValueError(f"{name} has the impossible shape {list(reversed(sizes))}")
        # The fastest dimension comes first.
        return name, (BLOCKS[kind], tuple(reversed(sizes)), offset)

    def _kind(self) -> str:
        number: int = self.number("<I")
        if number >= len(KINDS):
            raise ValueError(f"a field of the unknown type {number}")
        return KINDS[number]

    def _values(self, kind: str, count: int) -> list[Any]:
        code = CODES[kind]
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))


def _named(items: "Iterator[tuple[str, Any]]") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in items:
        if name in found:
            raise ValueError(f"{name} occurs twice")
        found[name] = value
    return found


def _alignment(fields: dict[str, Field]) -> int:
    if ALIGNED not in fields:
        return ALIGNMENT
    kind, value = fields[ALIGNED]
    if kind != "UINT32" or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise ValueError(f"{ALIGNED} is {value}, no power of two of at most {MAX_ALIGNMENT:,}")
    return int(value)


def _placed(
    entries: dict[str, tuple[Block, tuple[int, ...], int]], begin: int, alignment: int, size: int
) -> dict[str, GGUFTensor]:
    """Return where tensors lie in a file of ``size`` bytes, none of them upon another."""
    tensors = {}
    for name, (block, shape, offset) in entries.items():
        numel = math.prod(shape)
        if numel and shape and shape[-1] % block.elements:
            raise ValueError(f"{name}: rows of {shape[-1]} are no whole blocks of {block.name}")
        if numel % block.elements:
            raise ValueError(f"{name}: {numel} elements are no whole blocks of {block.name}")
        start = begin + offset
        stop = start + numel // block.elements * block.nbytes
        if offset % alignment or stop > size:
            raise ValueError(f"{name} lies at bytes {start:,} to {stop:,} of {size:,}")
        tensors[name] = GGUFTensor(block, shape, start, stop)
    position, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start < position:
            raise ValueError(f"{name} overlaps {before}")
        position, before = tensor.stop, name
    return tensors


def _damaged(path: Location, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, or not a GGUF file ({why})").hint(
        "Download or copy it again."
    )
