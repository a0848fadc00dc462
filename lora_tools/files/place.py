"""Places of tensors in files: addresses that cost nothing to keep, read by position."""

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError
from lora_tools.files.dtypes import numpy_dtype, torch_dtype
from lora_tools.files.header import Slot
from lora_tools.files.inputs import input_descriptor
from lora_tools.files.location import Location
from lora_tools.files.transfer import get

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lora_tools.update import Array

SCALARS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}
"""How `struct` unpacks the types of single numbers."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's file and slot."""

    path: Location
    slot: Slot


class Reader:
    """One tensor's bytes by position: its file stays open, and each call reuses the same buffer.

    The one way in which tensors are read in parts. Opens the file at the first read; what a pickle
    or a caller holds in memory is read like what lies in a file.
    """

    def __init__(self, values: "Place | Array") -> None:
        self._values = values
        self._stack = ExitStack()
        self._descriptor: int | None = None
        self._buffer: np.ndarray | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, start: int, stop: int) -> "np.ndarray":
        """Return some of its bytes, good until the next call. The range has to be within it."""
        import numpy as np  # headers are read without it

        values = self._values
        if not isinstance(values, Place):
            return as_bytes(values)[start:stop]
        if not 0 <= start <= stop <= values.slot.stop - values.slot.start:
            raise ValueError(f"{values.path}: bytes {start} to {stop} of {values.slot}")
        if self._descriptor is None:
            self._descriptor = self._stack.enter_context(input_descriptor(values.path))
        if self._buffer is None or self._buffer.size < stop - start:
            self._buffer = np.empty(stop - start, np.uint8)
        part = self._buffer[: stop - start]
        get(self._descriptor, part, values.slot.start + start, values.path)
        return part


def as_bytes(values: "Array") -> "np.ndarray":
    """Return the bytes of an array of numpy or torch that is in memory."""
    import numpy as np  # headers are read without it

    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    import torch  # a pickle's tensor

    assert isinstance(values, torch.Tensor)
    result: np.ndarray = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return result


def read_tensor(place: Place) -> "Tensor":
    """Read one tensor by position into memory of its own."""
    import torch  # headers are read without it

    spec = place.slot.spec
    dtype = torch_dtype(spec.dtype)
    shape = list(spec.shape)
    if spec.dtype == "F4":
        if not shape or shape[-1] % 2:
            raise CheckpointError(
                f"{place.path}: torch holds F4 in pairs, which the shape {shape} does not have"
            )
        shape[-1] //= 2
    if not spec.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(read_bytes(place)).view(dtype).reshape(shape)


def read_array(place: Place) -> "Array":
    """Read one tensor into an array of numpy, or of torch where numpy lacks its type."""
    spec = place.slot.spec
    kind = numpy_dtype(spec.dtype)
    return read_tensor(place) if kind is None else read_bytes(place).view(kind).reshape(spec.shape)


def read_wide(place: Place) -> "Array":
    """Read one tensor as `read_array` does, but bfloat16 as the same numbers in float32.

    So torch, whose import takes longer than many a merge, stays unloaded.
    """
    if place.slot.spec.dtype != "BF16":
        return read_array(place)
    import numpy as np  # headers are read without it

    bits = read_bytes(place).view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32).reshape(place.slot.spec.shape)


def read_number(place: Place, name: str) -> float:
    """Read a tensor of one element as a number; neither numpy nor torch is loaded."""
    slot = place.slot
    code = slot.spec.dtype
    if code not in SCALARS and code != "BF16":
        raise CheckpointError(f"{place.path}: {name} of type {code} is no number")
    data = bytearray(slot.stop - slot.start)
    with input_descriptor(place.path) as descriptor:
        get(descriptor, data, slot.start, place.path)
    if code == "BF16":  # the upper half of a float32
        code, data = "F32", bytearray(2) + data
    return float(struct.unpack(SCALARS[code], data)[0])


def read_bytes(
    values: "Place | Array", start: int = 0, stop: int | None = None
) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Return a tensor's bytes, or some of them, in memory of their own.

    In a buffer of numpy's: the aligned ones of torch leave holes in the heap that fit no successor.
    Reading 30 tensors of 10 MB one by one grew a process by 140 MB, and by 20 MB so.
    """
    if not isinstance(values, Place):
        return as_bytes(values)[start:stop]
    whole = values.slot.stop - values.slot.start
    with Reader(values) as reader:
        return reader.read(start, whole if stop is None else stop)


def expect(place: "Place | Array") -> None:
    """Tell the kernel that a tensor will be read soon, so that the disk works meanwhile."""
    if (
        not isinstance(place, Place)
        or not isinstance(place.path, Path)
        or not hasattr(os, "posix_fadvise")
    ):
        return  # in memory; it would be fetched from afar; or the system takes no advice
    with input_descriptor(place.path) as descriptor:
        size = place.slot.stop - place.slot.start
        os.posix_fadvise(descriptor, place.slot.start, size, os.POSIX_FADV_WILLNEED)
