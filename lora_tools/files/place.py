"""Places of tensors in files: addresses that cost nothing to keep, read by position."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError
from lora_tools.files.dtypes import numpy_dtype, torch_dtype
from lora_tools.files.guests import Guest
from lora_tools.files.header import Slot, Spec
from lora_tools.files.inputs import input_descriptor, open_input

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lora_tools.update import Array

SCALARS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}
"""How `struct` unpacks the types of single numbers."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's file and slot."""

    path: Path
    slot: Slot

    def span(self, start: int, stop: int) -> "Place":
        """Return the place of some of its elements, which need not be rows, as a vector."""
        spec = self.slot.spec
        width = spec.nbytes // max(spec.numel, 1)
        begin = self.slot.start
        slot = Slot(Spec(spec.dtype, (stop - start,)), begin + start * width, begin + stop * width)
        return Place(self.path, slot)


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


def read_number(place: Place, name: str) -> float:
    """Read a tensor of one element as a number; neither numpy nor torch is loaded."""
    slot = place.slot
    code = slot.spec.dtype
    if code not in SCALARS and code != "BF16":
        raise CheckpointError(f"{place.path}: {name} of type {code} is no number")
    with open_input(place.path) as file:
        file.seek(slot.start)
        data = file.read(slot.stop - slot.start)
    if code == "BF16":  # the upper half of a float32
        code, data = "F32", b"\0\0" + data
    return float(struct.unpack(SCALARS[code], data)[0])


def read_bytes(
    place: Place, start: int = 0, stop: int | None = None
) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Read a tensor's bytes by position, or some of them.

    Into a buffer of numpy's: the aligned ones of torch leave holes in the heap that fit no
    successor. Reading 30 tensors of 10 MB one by one grew a process by 140 MB, and by 20 MB so.
    """
    import numpy as np  # headers are read without it

    end = place.slot.stop if stop is None else place.slot.start + stop
    buffer = np.empty(end - place.slot.start - start, np.uint8)
    view = memoryview(buffer.data)
    with input_descriptor(place.path) as descriptor:
        while view:
            count = os.preadv(descriptor, [view], end - len(view))
            if count == 0:
                raise CheckpointError(f"{place.path}: became shorter while it was read")
            view = view[count:]
    return buffer


def expect(place: Place) -> None:
    """Tell the kernel that a tensor will be read soon, so that the disk works meanwhile."""
    if isinstance(place.path, Guest) or not hasattr(os, "posix_fadvise"):
        return  # it would be fetched from afar; or the system takes no advice
    with input_descriptor(place.path) as descriptor:
        size = place.slot.stop - place.slot.start
        os.posix_fadvise(descriptor, place.slot.start, size, os.POSIX_FADV_WILLNEED)
