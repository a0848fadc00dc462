"""NumPy archives, read by position: the arrays that ``savez`` stores lie uncompressed in a zip."""

import ast
import zipfile
from pathlib import Path

from lora_tools.errors import CheckpointError
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import Slot, Spec
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
"""NumPy's descriptions of element types, as safetensors calls them."""

LOCAL_HEADER = 30
"""Bytes of a zip's local header before the name and the extra field."""


def read_npz(path: Path) -> Checkpoint:
    """Open an archive of arrays; `CheckpointError` for compressed or unknown ones.

    Costs the headers: a tensor is read when it is asked for.
    """
    places: dict[str, Place] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: {entry.filename} is compressed").hint(
                        "Save it with numpy.savez instead of savez_compressed."
                    )
                file.seek(entry.header_offset + LOCAL_HEADER - 4)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                start = entry.header_offset + LOCAL_HEADER + name + extra
                file.seek(start)
                spec, length = _array_header(file.read(min(entry.file_size, 4096)))
                slot = Slot(spec, start + length, start + entry.file_size)
                if slot.stop - slot.start != spec.nbytes:
                    raise CheckpointError(f"{path}: {entry.filename} is truncated")
                places[entry.filename.removesuffix(".npy")] = Place(path, slot)
    except (zipfile.BadZipFile, ValueError, KeyError, SyntaxError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not an archive of arrays ({error})") from error
    if not places:
        raise CheckpointError(f"{path}: holds no arrays")
    return Checkpoint(path, places, {name: place.slot.spec for name, place in places.items()}, {})


def _array_header(data: bytes) -> tuple[Spec, int]:
    """Return what an .npy header says and its length; `ValueError` if it is none."""
    if data[:6] != b"\x93NUMPY":
        raise ValueError("an entry is no array")
    width = 2 if data[6] == 1 else 4
    begin = 8 + width
    length = begin + int.from_bytes(data[8:begin], "little")
    said = ast.literal_eval(data[begin:length].decode("latin-1"))
    if said["fortran_order"] and len(said["shape"]) > 1:
        raise ValueError("an array is in Fortran's order")
    if said["descr"] not in CODES:
        raise ValueError(f"elements of type {said['descr']}")
    return Spec(CODES[said["descr"]], tuple(said["shape"])), length
