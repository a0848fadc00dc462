"""Checkpoints as lazy mappings: headers are read at once, a tensor when it is asked for."""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError, some
from lora_tools.storage.dtypes import numpy_dtype, torch_dtype
from lora_tools.storage.guests import Guest, Guests, reading
from lora_tools.storage.header import Slot, Spec, read_header

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lora_tools.update import Array

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".safetensors.index.json"
READERS = 8
"""Headers that are read at the same time."""
PICKLED_INDEX = ".bin.index.json"


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's file and slot: an address that costs nothing to keep or to send."""

    path: Path
    slot: Slot


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of one or more files, in file order.

    Nothing is cached and nothing is mapped into memory: each access reads one tensor by position
    into a buffer of its own, from any thread. Pickles cannot be read in parts and are held whole.
    """

    def __init__(
        self,
        path: Path,
        places: Mapping[str, "Place | Tensor"],
        specs: Mapping[str, Spec],
        metadata: Mapping[str, str],
        guests: Guests | None = None,
    ) -> None:
        self.path = path
        self.specs = specs
        self.metadata = metadata
        self._places = places
        self._guests = guests

    def __getitem__(self, name: str) -> "Tensor":
        place = self._places[name]
        if not isinstance(place, Place):
            return place
        with reading(place.path, self._guests):
            return read_tensor(place)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def bytes_of(
        self, name: str, start: int = 0, stop: int | None = None
    ) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """Return a range of a tensor's bytes, in memory of its own; the whole by default."""
        stop = self.specs[name].nbytes if stop is None else stop
        place = self._places[name]
        if isinstance(place, Place):
            return _read_bytes(place, start, stop)
        import torch  # it is a tensor of torch's

        flat = place.contiguous().reshape(-1).view(torch.uint8)[start:stop]
        return flat.numpy()

    def expect(self, name: str) -> None:
        """Tell the kernel that a tensor will be read soon, so that the disk works meanwhile."""
        place = self._places[name]
        if not isinstance(place, Place) or isinstance(place.path, Guest):
            return  # it is in memory, or would be fetched from afar
        if not hasattr(os, "posix_fadvise"):
            return  # not every system takes advice
        descriptor = os.open(place.path, os.O_RDONLY)
        try:
            size = place.slot.stop - place.slot.start
            os.posix_fadvise(descriptor, place.slot.start, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold its tensors, each once, in order."""
        places = self._places.values()
        paths = dict.fromkeys(place.path for place in places if isinstance(place, Place))
        return tuple(paths) or (self.path,)

    def position(self, name: str) -> tuple[str, int]:
        """Return what sorts tensors into the order of the files."""
        place = self._places[name]
        return (str(place.path), place.slot.start) if isinstance(place, Place) else ("", 0)

    @property
    def nbytes(self) -> int:
        """Size of its files on disk, without an index."""
        files = {place.path for place in self._places.values() if isinstance(place, Place)}
        return sum(file.stat().st_size for file in files or {self.path})

    @property
    def arrays(self) -> "Arrays":
        """The same tensors as arrays of numpy, where numpy has their type: torch stays unloaded."""
        return Arrays(self._places, self._guests)

    def evicting(self, names: Iterable[str]) -> "Checkpoint":
        """Return the same tensors, of which each of ``names`` will be read once.

        A file that had to be fetched for it is removed after the last of them; a name that occurs
        twice is read twice. Local files stay. For threads, not for processes: they share a count.
        """
        places = (self._places[name] for name in names)
        guests = Guests(place.path for place in places if isinstance(place, Place))
        return Checkpoint(self.path, self._places, self.specs, self.metadata, guests)

    @property
    def scalars(self) -> "Scalars":
        """The tensors of one element, as numbers."""
        return Scalars(self._places, self.specs)


@dataclass(frozen=True, slots=True)
class Arrays(Mapping[str, "Array"]):
    """The tensors of a checkpoint, as arrays of numpy where numpy has their type."""

    places: Mapping[str, "Place | Tensor"]
    guests: Guests | None = None

    def __getitem__(self, name: str) -> "Array":
        place = self.places[name]
        if not isinstance(place, Place):
            return place
        with reading(place.path, self.guests):
            return read_array(place)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


SCALARS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}
"""How `struct` unpacks the types of single numbers."""


@dataclass(frozen=True, slots=True)
class Scalars(Mapping[str, float]):
    """The tensors of one element as numbers, read by position: neither numpy nor torch is loaded.

    A name that is not there is a `KeyError`; a tensor of more elements is a `CheckpointError`.
    """

    places: Mapping[str, "Place | Tensor"]
    specs: Mapping[str, Spec]

    def __getitem__(self, name: str) -> float:
        spec = self.specs[name]
        if spec.numel != 1:
            raise CheckpointError(f"{name} has the shape {list(spec.shape)}, and is no number")
        place = self.places[name]
        return _read_number(place, name) if isinstance(place, Place) else float(place.item())

    def __contains__(self, name: object) -> bool:
        return name in self.specs and self.specs[str(name)].numel == 1

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.places if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors or npz file, an index of shards, a folder with either, or pickles.

    Raises `CheckpointError` when there is no such file, when it is damaged, or when an index and
    its shards disagree. Costs the headers; torch is imported for pickles only.
    """
    if path.is_dir():
        return open_checkpoint(_file_in(path))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.name.endswith(INDEX):
        return _open_shards(path)
    if path.name.endswith(PICKLED_INDEX):
        return _open_pickled_shards(path)
    if path.suffix in PICKLES:
        from lora_tools.storage.pickles import load_pickle  # needs torch

        return load_pickle(path)
    if path.suffix == ".npz":
        from lora_tools.storage.npz import read_npz  # it needs this module's places

        return read_npz(path)
    header = read_header(path)
    places = {name: Place(path, slot) for name, slot in header.slots.items()}
    return Checkpoint(path, places, _specs(places), header.metadata)


def open_partly(path: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    """Open a checkpoint of which shards may be missing; return their names, too."""
    index = path if path.name.endswith(INDEX) else None
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX}"))
        index = found[0] if len(found) == 1 else None
    if index is None or not index.is_file():
        return open_checkpoint(path), ()
    files = _files(index)
    missing = tuple(name for name in sorted(files) if not (index.parent / name).is_file())
    return _open_shards(index, absent=frozenset(missing)), missing


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
    return torch.from_numpy(_read_bytes(place)).view(dtype).reshape(shape)


def read_array(place: Place) -> "Array":
    """Read one tensor into an array of numpy, or of torch where numpy lacks its type."""
    spec = place.slot.spec
    kind = numpy_dtype(spec.dtype)
    return read_tensor(place) if kind is None else _read_bytes(place).view(kind).reshape(spec.shape)


def _read_number(place: Place, name: str) -> float:
    slot = place.slot
    code = slot.spec.dtype
    if code not in SCALARS and code != "BF16":
        raise CheckpointError(f"{place.path}: {name} of type {code} is no number")
    with place.path.open("rb") as file:
        file.seek(slot.start)
        data = file.read(slot.stop - slot.start)
    if code == "BF16":  # the upper half of a float32
        code, data = "F32", b"\0\0" + data
    return float(struct.unpack(SCALARS[code], data)[0])


def _read_bytes(
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
    descriptor = os.open(place.path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(descriptor, [view], end - len(view))
            if count == 0:
                raise CheckpointError(f"{place.path}: became shorter while it was read")
            view = view[count:]
    finally:
        os.close(descriptor)
    return buffer


def _file_in(folder: Path) -> Path:
    for pattern in (f"*{INDEX}", "*.safetensors", f"*{PICKLED_INDEX}", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = some(file.name for file in found)
            raise CheckpointError(f"{folder}: more than one checkpoint: {names}").hint(
                "Name the file that is meant."
            )
    raise CheckpointError(f"{folder}: holds no safetensors file and no {INDEX[1:]}")


def _files(index: Path) -> dict[str, list[str]]:
    """Return the tensors that an index names, by the file that it says they are in."""
    files: dict[str, list[str]] = {}
    try:
        weight_map: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        for name, file in weight_map.items():
            files.setdefault(file, []).append(name)
            (index.parent / file).is_file()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors shards") from error
    return files


def _weight_map(
    index: Path, absent: frozenset[str] = frozenset()
) -> tuple[dict[str, str], list[str]]:
    """Return the file of each tensor that an index names, and the files, but for absent ones."""
    contents = _files(index)
    files = sorted(contents.keys() - absent)
    weight_map = {name: file for file in files for name in contents[file]}
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: missing shards: {some(missing)}")
    return weight_map, files


def _open_pickled_shards(index: Path) -> Checkpoint:
    """Open pickled shards. All of them are held in memory: pickles cannot be read in parts."""
    from lora_tools.storage.pickles import load_pickle  # needs torch

    weight_map, files = _weight_map(index)
    shards = [load_pickle(index.parent / file) for file in files]
    places = {name: tensor for shard in shards for name, tensor in shard.items()}
    specs = {name: spec for shard in shards for name, spec in shard.specs.items()}
    absent = sorted(weight_map.keys() - places.keys())
    if absent:
        raise CheckpointError(f"{index}: the shards do not hold {some(absent)}")
    return Checkpoint(index, places, specs, {})


def _open_shards(index: Path, absent: frozenset[str] = frozenset()) -> Checkpoint:
    weight_map, files = _weight_map(index, absent)
    places: dict[str, Place] = {}
    metadata: dict[str, str] = {}
    unnamed = []
    with ThreadPoolExecutor(READERS) as pool:  # those of a remote checkpoint take their time
        headers = list(pool.map(lambda file: read_header(index.parent / file), files))
    for file, header in zip(files, headers, strict=True):
        metadata.update(header.metadata)
        for name, slot in header.slots.items():
            if weight_map.get(name) == file:
                places[name] = Place(index.parent / file, slot)
            elif name not in weight_map:
                unnamed.append(f"{name} of {file}")
    unheld = sorted(weight_map.keys() - places.keys())
    if unheld:
        raise CheckpointError(f"{index}: the shards do not hold {some(unheld)}")
    if unnamed:
        raise CheckpointError(f"{index}: does not name {some(unnamed)}").hint(
            "Index and shards are of different checkpoints; download them again."
        )
    return Checkpoint(index, places, _specs(places), metadata)


def _specs(places: Mapping[str, Place]) -> dict[str, Spec]:
    return {name: place.slot.spec for name, place in places.items()}
