"""GGUF files, llama.cpp's container: a header of typed fields, then tensors at aligned places."""

import struct
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError, PackageError, some
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.fields import Field, field_of, pack, text_of
from lora_tools.files.gguf_header import ALIGNED, ALIGNMENT, BLOCKS, MAGIC, read_gguf_header
from lora_tools.files.header import Slot, Spec
from lora_tools.files.inputs import open_input
from lora_tools.files.layout import Layout
from lora_tools.files.location import Location, size_of
from lora_tools.files.place import Place, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 3
DEQUANTISED = "Q8_0"
"""The one quantised type that adapters are stored in."""

_Q8_0_BYTES = next(block.nbytes for block in BLOCKS.values() if block.name == DEQUANTISED)


def package() -> ModuleType:
    """Import llama.cpp's own package; `PackageError` if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise PackageError("GGUF files need gguf, which is not installed").hint(
            "Install it with: pip install 'lora-tools[gguf]'"
        ) from error
    return gguf


def read_gguf(path: Location) -> Checkpoint:
    """Open a GGUF file; its metadata are the header's fields, as `fields.text_of` writes them.

    Costs the header: a tensor is read when it is asked for, but for quantised ones, which are
    dequantised at once. Raises `CheckpointError` for what is no GGUF file, is damaged, or holds
    tensors of other quantised types.
    """
    with open_input(path) as file:
        header = read_gguf_header(file, size_of(path), path)
    metadata = {name: text_of(field) for name, field in header.fields.items()}
    tensors = header.tensors
    if others := sorted({each.block.name for each in tensors.values()} - {*DTYPES, DEQUANTISED}):
        names = [name for name, each in tensors.items() if each.block.name in others]
        raise CheckpointError(f"{path}: tensors of type {', '.join(others)}: {some(names)}").hint(
            "Convert the adapter again with --outtype f32, f16 or bf16."
        )
    specs, places = {}, dict[str, "Place | Tensor"]()
    for name, (block, shape, start, stop) in tensors.items():
        packed = block.name == DEQUANTISED
        specs[name] = Spec("F32" if packed else block.name, shape)
        own = Spec("U8", (stop - start,)) if packed else specs[name]
        place = Place(path, Slot(own, start, stop))
        places[name] = _dequantised(place, shape) if packed else place
    count = sum(each.block.name == DEQUANTISED for each in tensors.values())
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


def _dequantised(place: Place, shape: tuple[int, ...]) -> "Tensor":
    """Return the numbers that a quantised tensor stands for, in memory."""
    import torch  # a checkpoint holds what it has in memory as torch's

    gguf = package()
    data = read_bytes(place).reshape(-1, _Q8_0_BYTES)
    values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[DEQUANTISED])
    return torch.from_numpy(values.reshape(shape).copy())
