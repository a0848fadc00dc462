"""NumPy archives, read by position: the arrays that ``savez`` stores lie uncompressed in a zip."""

import math
import re
import struct
import zipfile
from typing import IO

from lora_tools.errors import CheckpointError
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import MAX_COUNT, MAX_DIMENSIONS, Slot, Spec
from lora_tools.files.inputs import open_input
from lora_tools.files.location import Location
from lora_tools.files.place import Place

CODES = {
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "<i4": "I32",
    "<i8": "I64",
    "|u1": "U8",
    "|b1": "BOOL",
}
"""NumPy's descriptions of dtypes, as safetensors calls them."""

LOCAL = struct.Struct("<4s2xHH16xHH")
"""A zip's header before each entry: signature, flags, method, lengths of name and extra field."""

ENCRYPTED = 1
MAX_HEADER = 10_000
"""The longest header of an array that numpy reads, in bytes."""

ITEM = re.compile(
    r"""\s*(['"])(?P<key>\w+)\1\s*:\s*
    (?:(['"])(?P<text>[^'"\\]*)\3 | (?P<flag>True|False) | \((?P<numbers>[\d\s,L]*)\))
    \s*(?:,|$)""",
    re.VERBOSE,
)
"""A key and a value of an array's header, which is a Python dictionary of three."""


def read_npz(path: Location) -> Checkpoint:
    """Open an archive of arrays; `CheckpointError` for compressed or unknown ones.

    Costs the headers: a tensor is read when it is asked for. Whatever the zip's directory says is
    held against the bytes where it points before an array is believed to be there.
    """
    places: dict[str, Place] = {}
    try:
        with open_input(path) as file, zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in places:
                    raise CheckpointError(f"{path}: {name} occurs twice")
                places[name] = Place(path, _slot(entry, file, archive.start_dir, path))
    except CheckpointError:
        raise
    # A zip's directory of random bytes makes its reader raise any of these.
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path}: not an archive of arrays ({error})") from error
    if not places:
        raise CheckpointError(f"{path}: holds no arrays")
    _check_apart(places, path)
    return Checkpoint(path, places, {name: place.slot.spec for name, place in places.items()}, {})


def _slot(entry: zipfile.ZipInfo, file: IO[bytes], end: int, path: Location) -> Slot:
    """Return where an entry's array lies; ``end`` is where the zip's directory begins."""
    if entry.flag_bits & ENCRYPTED:
        raise CheckpointError(f"{path}: {entry.filename} is encrypted")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: {entry.filename} is compressed").hint(
            "Save it with numpy.savez instead of savez_compressed."
        )
    if not 0 <= entry.header_offset <= end - LOCAL.size:
        raise ValueError(f"{entry.filename} is not in the file")
    file.seek(entry.header_offset)
    mark, flags, method, name, extra = LOCAL.unpack(file.read(LOCAL.size))
    same = file.read(name) == entry.orig_filename.encode("utf-8" if flags & 0x800 else "cp437")
    if mark != b"PK\3\4" or method != entry.compress_type or flags & ENCRYPTED or not same:
        raise ValueError(f"{entry.filename} is not where the directory says")
    start = entry.header_offset + LOCAL.size + name + extra
    stop = start + entry.file_size
    if entry.file_size != entry.compress_size or stop > end:
        raise CheckpointError(f"{path}: {entry.filename} is truncated")
    file.seek(start)
    spec, length = _array_header(file.read(min(entry.file_size, MAX_HEADER)))
    if entry.file_size - length != spec.nbytes:
        raise CheckpointError(
            f"{path}: {entry.filename} is truncated: an array of shape {list(spec.shape)} and type"
            f" {spec.dtype} in {entry.file_size:,} bytes"
        )
    return Slot(spec, start + length, stop)


def _array_header(data: bytes) -> tuple[Spec, int]:
    """Return what an .npy header says and its length; `ValueError` if it is none."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("an entry is no array")
    begin = 10 if data[6] == 1 else 12
    length = begin + int.from_bytes(data[8:begin], "little")
    if length > len(data):
        raise ValueError(f"a header of {length:,} bytes, where an entry has {len(data):,}")
    stated = _dictionary(data[begin:length].decode("utf-8" if data[6] == 3 else "latin-1"))
    if stated.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("an array's header says other things than type, order and shape")
    shape, descr = stated["shape"], stated["descr"]
    if not isinstance(shape, tuple) or not isinstance(stated["fortran_order"], bool):
        raise ValueError("an array's header is not understood")
    if descr not in CODES:
        raise ValueError(f"elements of type {descr}")
    if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_COUNT:
        raise ValueError(f"the impossible shape {list(shape)}")
    if stated["fortran_order"] and sum(size != 1 for size in shape) > 1:
        raise ValueError("an array is in Fortran's order")
    return Spec(CODES[str(descr)], shape), length


def _dictionary(text: str) -> dict[str, object]:
    """Return the dictionary that an array's header is, without evaluating anything."""
    text, found = text.strip(), dict[str, object]()
    position, stop = 1, len(text) - 1
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError("an array's header is no dictionary")
    while text[position:stop].strip():
        item = ITEM.match(text, position, stop)
        if item is None or item["key"] in found:
            raise ValueError("an array's header is not understood")
        if item["numbers"] is not None:
            found[item["key"]] = _tuple(item["numbers"])
        else:
            found[item["key"]] = item["text"] if item["flag"] is None else item["flag"] == "True"
        position = item.end()
    return found


def _tuple(text: str) -> tuple[int, ...]:
    """Return the numbers between the parentheses of a tuple; Python 2 put an L behind them."""
    *parts, last = text.split(",")
    if not parts and last.strip():
        raise ValueError(f"the shape ({text}) is no tuple")
    return tuple(
        int(part.strip().removesuffix("L")) for part in [*parts, *filter(str.strip, [last])]
    )


def _check_apart(places: dict[str, Place], path: Location) -> None:
    position, before = 0, ""
    for name, place in sorted(places.items(), key=lambda item: item[1].slot.start):
        if place.slot.start < position:
            raise CheckpointError(f"{path}: {name} overlaps {before}")
        position, before = place.slot.stop, name
