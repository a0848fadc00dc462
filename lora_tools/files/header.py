"""The header of a safetensors file, validated before anything relies on it."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_tools.errors import CheckpointError, some
from lora_tools.files.dtypes import DTYPES, code_of
from lora_tools.files.inputs import open_input
from lora_tools.files.location import Location, size_of

if TYPE_CHECKING:
    from lora_tools.update import Array

MAX_HEADER = 100_000_000
"""The largest header that safetensors itself accepts, in bytes."""

MAX_COUNT = 2**63 - 1
"""The most elements or bytes that torch and safetensors can count."""

MAX_DIMENSIONS = 64
"""As many as arrays of torch and numpy have."""

LFS_POINTER = b"version https://git-lfs.github.com/spec"


@dataclass(frozen=True, slots=True)
class Spec:
    """dtype and shape of a tensor that need not exist yet."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes; elements narrower than a byte are packed."""
        return self.numel * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place: ``file[start:stop]`` holds its elements."""

    spec: Spec
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself; slots in file order, offsets from its start."""

    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]


def spec_of(tensor: "Array") -> Spec:
    """Return how a file describes a tensor; `CheckpointError` if files cannot hold its type."""
    code, shape = code_of(tensor.dtype), tuple(tensor.shape)
    # torch counts F4 in pairs, files one by one
    return Spec(code, (*shape[:-1], 2 * shape[-1]) if code == "F4" else shape)


def read_header(path: Location) -> Header:
    """Read and validate the header of a safetensors file.

    Raises `CheckpointError` for anything that a later read would trip over: a truncated file,
    offsets that overlap, leave gaps or leave the file, sizes that do not fit the shapes, names
    that occur twice, unknown dtypes.
    """
    size = size_of(path)
    with open_input(path) as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and length <= min(MAX_HEADER, size - 8):
            return parse_header(file.read(length), size, path)
        raise _not_safetensors(path, prefix + file.read(len(LFS_POINTER)), length, size)


def parse_header(text: bytes, size: int, path: Location) -> Header:
    """Parse the JSON of a header of a file of ``size`` bytes; ``path`` is for the messages."""
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_Object)
        "".join(document).encode()  # half a surrogate pair is JSON, and no text
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error})") from error
    if not isinstance(document, _Object):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    objects = [document, *(value for value in document.values() if isinstance(value, _Object))]
    if twice := [key for value in objects for key in value.twice]:
        raise CheckpointError(f"{path}: names occur twice in the header: {some(twice)}")
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not a JSON object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ holds values that are not strings")
    try:
        "".join(part for item in metadata.items() for part in item).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: __metadata__ holds half a surrogate pair") from error
    begin = 8 + len(text)
    slots = [(name, _slot(name, entry, begin, path)) for name, entry in document.items()]
    slots.sort(key=lambda item: (item[1].start, item[1].stop))
    _check_cover(slots, begin, size, path)
    return Header(dict(slots), dict(metadata))


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys occurred twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.twice = [key for key, count in counts.items() if count > 1]


def _slot(name: str, entry: Any, begin: int, path: Location) -> Slot:
    try:
        code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {name} is malformed") from error
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(f"{path}: {name} has the unknown dtype {code!r}").hint(
            f"Known are {', '.join(DTYPES)}."
        )
    if not isinstance(shape, list) or not all(
        type(number) is int and 0 <= number <= MAX_COUNT for number in numbers
    ):
        raise CheckpointError(f"{path}: {name} has the shape {shape} at {[start, stop]}")
    spec = Spec(code, tuple(shape))
    if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_COUNT:
        raise CheckpointError(f"{path}: {name} has the impossible shape {shape}")
    if spec.numel * DTYPES[code].bits % 8:
        raise CheckpointError(
            f"{path}: {name} of shape {shape} and type {code} does not fill its last byte"
        )
    if stop - start != spec.nbytes:
        raise CheckpointError(
            f"{path}: {name} of shape {list(shape)} and type {code} needs {spec.nbytes} bytes,"
            f" but its offsets give it {stop - start}"
        )
    return Slot(spec, begin + start, begin + stop)


def _check_cover(slots: list[tuple[str, Slot]], begin: int, size: int, path: Location) -> None:
    position, before = begin, "the header"
    for name, slot in slots:
        if slot.start < position:
            raise CheckpointError(f"{path}: {name} overlaps {before}")
        if slot.start > position:
            raise CheckpointError(
                f"{path}: {slot.start - position} bytes between {before} and {name} belong to no"
                " tensor"
            )
        position, before = slot.stop, name
    if position > size:
        raise CheckpointError(
            f"{path}: truncated: {before} ends at byte {position:,} of a file of {size:,} bytes"
        ).hint("Download or copy it again.")
    if position < size:
        raise CheckpointError(f"{path}: {size - position:,} bytes after the last tensor")


def _not_safetensors(path: Location, start: bytes, length: int, size: int) -> CheckpointError:
    if start.startswith(LFS_POINTER):
        return CheckpointError(f"{path}: a Git LFS pointer, not the file itself").hint(
            "Run `git lfs pull` in its repository, or download the file from its page."
        )
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return CheckpointError(f"{path}: a PyTorch pickle or zip, not a safetensors file").hint(
            "Give it its own ending back: .bin, .pt or .pth."
        )
    if start[:4] == b"GGUF":
        return CheckpointError(f"{path}: a GGUF file, not a safetensors file").hint(
            "Give it its own ending back: .gguf."
        )
    if size < 8:
        return CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
    if length > MAX_HEADER:
        return CheckpointError(
            f"{path}: not a safetensors file (its header would be {length:,} bytes)"
        )
    return CheckpointError(
        f"{path}: truncated: a header of {length:,} bytes in a file of {size:,} bytes"
    ).hint("Download or copy it again.")
