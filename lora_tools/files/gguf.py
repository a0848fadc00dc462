"""GGUF files, llama.cpp's container: a header of typed fields, then tensors at aligned places."""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lora_tools.errors import CheckpointError, PackageError, some
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.fields import Field, field_of, pack, text_of
from lora_tools.files.header import Slot, Spec
from lora_tools.files.layout import Layout
from lora_tools.files.place import Place

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
"""What tensors begin at a multiple of, unless a field says otherwise."""

ALIGNED = "general.alignment"
DEQUANTISED = "Q8_0"
"""The one quantised type that adapters are stored in."""


def package() -> ModuleType:
    """Import llama.cpp's own package; `PackageError` if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise PackageError("GGUF files need gguf, which is not installed").hint(
            "Install it with: pip install 'lora-tools[gguf]'"
        ) from error
    return gguf


def read_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file; its metadata are the header's fields, as `fields.text_of` writes them.

    Costs the header: a tensor is read when it is asked for, but for quantised ones, which are
    dequantised at once. Raises `CheckpointError` for what is no GGUF file, is damaged, or holds
    tensors of other quantised types.
    """
    gguf = package()
    try:
        reader = gguf.GGUFReader(path)
        metadata = {
            name: text_of(_field(field))
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")  # counts, which are no fields of the file
        }
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or not a GGUF file ({error})").hint(
            "Download or copy it again."
        ) from error
    if reader.byte_order != "I":
        raise CheckpointError(f"{path}: a GGUF file for big-endian machines").hint(
            "Convert the adapter again without --bigendian."
        )
    types = {tensor.name: str(tensor.tensor_type.name) for tensor in reader.tensors}
    if others := sorted({*types.values()} - {*DTYPES, DEQUANTISED}):
        names = [name for name, kind in types.items() if kind in others]
        raise CheckpointError(f"{path}: tensors of type {', '.join(others)}: {some(names)}").hint(
            "Convert the adapter again with --outtype f32, f16 or bf16."
        )
    places: dict[str, Place | Tensor] = {}
    specs = {}
    for tensor in reader.tensors:
        name, kind, shape = tensor.name, types[tensor.name], _shape(tensor)
        specs[name] = Spec("F32" if kind == DEQUANTISED else kind, shape)
        if kind == DEQUANTISED:
            places[name] = _dequantised(gguf, tensor)
        else:
            start = int(tensor.data_offset)
            places[name] = Place(path, Slot(specs[name], start, start + int(tensor.n_bytes)))
    count = sum(kind == DEQUANTISED for kind in types.values())
    note = f"{count} tensors are stored as {DEQUANTISED}; they are read as F32."
    return Checkpoint(path, places, specs, metadata, notes=(note,) if count else ())


def layout(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> Layout:
    """Lay a GGUF file out: tensors in the order given, each at an aligned place.

    ``metadata`` are its fields as `read_gguf` returns them. Raises `CheckpointError` for element
    types that GGUF does not have.
    """
    gguf = package()
    fields = {name: field_of(text) for name, text in metadata.items()}
    alignment = int(fields[ALIGNED].value) if ALIGNED in fields else ALIGNMENT
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(specs), len(fields)))
    for name, field in fields.items():
        header += pack(Field("STRING", name))
        header += b"".join(struct.pack("<I", gguf.GGUFValueType[kind]) for kind in field.kinds)
        header += pack(field)
    starts, stop = {}, 0
    for name, spec in specs.items():
        if spec.dtype not in gguf.GGMLQuantizationType.__members__:
            raise CheckpointError(f"GGUF files cannot hold elements of type {spec.dtype}: {name}")
        starts[name] = stop + -stop % alignment
        stop = starts[name] + spec.nbytes
        header += pack(Field("STRING", name))
        # The fastest dimension comes first.
        header += struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *reversed(spec.shape))
        header += struct.pack("<IQ", gguf.GGMLQuantizationType[spec.dtype], starts[name])
    header += b"\0" * (-len(header) % alignment)
    slots = {
        name: Slot(spec, len(header) + starts[name], len(header) + starts[name] + spec.nbytes)
        for name, spec in specs.items()
    }
    return Layout(bytes(header), slots, alignment)


def _field(field: Any) -> Field:
    """Return a field of the package's reader; `ValueError` for arrays of arrays."""
    kinds = [str(kind.name) for kind in field.types]
    if kinds == ["ARRAY"]:  # an empty one, whose type is only in the bytes
        kinds.append(package().GGUFValueType(int(field.parts[3][0])).name)
    if len(kinds) > 2:
        raise ValueError(f"{field.name} is an array of arrays")
    return Field(" ".join(kinds), field.contents())


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantised(gguf: ModuleType, tensor: Any) -> "Tensor":
    """Return the numbers that a quantised tensor stands for, in memory."""
    import torch  # a checkpoint holds what it has in memory as torch's

    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.reshape(_shape(tensor)).copy())
