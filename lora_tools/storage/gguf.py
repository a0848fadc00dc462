"""GGUF files, through the ``gguf`` package: headers at once, tensors by position."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.errors import CheckpointError, LoraToolsError
from lora_tools.storage.checkpoint import Checkpoint, Place
from lora_tools.storage.header import Slot, Spec

if TYPE_CHECKING:
    from torch import Tensor

CODES = {"F16": "F16", "BF16": "BF16", "F32": "F32", "F64": "F64"}
"""The element types that lie in the file as they are; blocks of quantised ones are unpacked."""


def load_gguf() -> Any:
    """Return the ``gguf`` package, or say how to get it."""
    try:
        import gguf
    except ImportError as error:
        raise LoraToolsError("GGUF files need the package gguf, which is not installed").hint(
            "pip install 'lora-tools[gguf]'"
        ) from error
    return gguf


def read_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file: shapes as numpy has them, fields as metadata, in JSON but for strings.

    Raises `CheckpointError` if it is damaged.
    """
    gguf = load_gguf()
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the reader raises almost anything at damaged bytes
        raise CheckpointError(f"{path}: not a GGUF file ({error})") from error
    places: dict[str, Place | Tensor] = {}
    specs: dict[str, Spec] = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        code = CODES.get(tensor.tensor_type.name)
        specs[tensor.name] = Spec(code or "F32", shape)
        start = int(tensor.data_offset)
        if code:
            slot = Slot(specs[tensor.name], start, start + int(tensor.n_bytes))
            places[tensor.name] = Place(path, slot)
        else:
            places[tensor.name] = _unpacked(gguf, tensor, shape)
    return Checkpoint(path, places, specs, _fields(reader.fields))


def _unpacked(gguf: Any, tensor: Any, shape: tuple[int, ...]) -> "Tensor":
    import torch

    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.reshape(shape).copy())


def _fields(fields: Mapping[str, Any]) -> dict[str, str]:
    found = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()
    }
