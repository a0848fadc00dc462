"""Checkpoints as lazy mappings: headers are read at once, a tensor when it is asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError
from lora_tools.files.fingerprint import state
from lora_tools.files.header import Spec
from lora_tools.files.location import Location, size_of
from lora_tools.files.place import (
    Place,
    read_array,
    read_bytes,
    read_number,
    read_tensor,
    read_wide,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lora_tools.update import Array


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of one or more files, in file order.

    Nothing is cached and nothing is mapped into memory: each access reads one tensor by position
    into a buffer of its own, from any thread. Pickles cannot be read in parts and are held whole.
    """

    def __init__(
        self,
        path: Location,
        places: Mapping[str, "Place | Tensor"],
        specs: Mapping[str, Spec],
        metadata: Mapping[str, str],
        notes: tuple[str, ...] = (),
        parts: "Mapping[str, Checkpoint] | None" = None,
    ) -> None:
        self.path = path
        self.specs = specs
        self.metadata = metadata
        self.notes = notes  # what a person should know of how they are stored, a sentence each
        self.parts = parts or {}  # of a pipeline: each model's own, by the name of its folder
        self._places = places
        self._stored: Checkpoint | None = None
        self.state = state(self.files)  # as they were when their headers were read

    def __getitem__(self, name: str) -> "Tensor":
        place = self._places[name]
        return read_tensor(place) if isinstance(place, Place) else place

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
        return read_bytes(self._places[name], start, stop)

    @property
    def files(self) -> tuple[Location, ...]:
        """The files that hold its tensors, each once, in order."""
        places = self._places.values()
        paths = dict.fromkeys(place.path for place in places if isinstance(place, Place))
        return tuple(paths) or (self.path,)

    def file(self, name: str) -> Location:
        """Return the file that holds a tensor."""
        place = self._places[name]
        return place.path if isinstance(place, Place) else self.path

    @property
    def places(self) -> Iterable[tuple[str, "Place | Tensor"]]:
        """Where each tensor lies, by name; a pickle's is in memory."""
        return self._places.items()

    def origin(self, name: str) -> tuple[str, str]:
        """Return the file that holds a tensor, as seen from its folder, and its name in there."""
        part, _, inner = name.partition(".")
        if part in self.parts:
            file, key = self.parts[part].origin(inner)
            return f"{part}/{file}", key
        return self.file(name).name, name

    @property
    def stored(self) -> "Checkpoint":
        """The same tensors under the names that the files have."""
        return self._stored or self

    def renamed(self, names: Mapping[str, str], note: str) -> "Checkpoint":
        """Return the same tensors under other names, those that ``names`` has, with a note."""
        places = {names.get(name, name): place for name, place in self._places.items()}
        specs = {names.get(name, name): spec for name, spec in self.specs.items()}
        found = Checkpoint(self.path, places, specs, self.metadata, (*self.notes, note))
        found._stored = self.stored
        return found

    def noted(self, note: str) -> "Checkpoint":
        """Return the same tensors with a note."""
        return self.renamed({}, note)

    @property
    def nbytes(self) -> int:
        """Size of its files on disk, without an index."""
        return sum(map(size_of, self.files))

    @property
    def arrays(self) -> "Arrays":
        """The same tensors as arrays of numpy, where numpy has their type: torch stays unloaded."""
        return Arrays(self._places)

    @property
    def numbers(self) -> "Arrays":
        """The same tensors as `arrays`, bfloat16 exactly as it is in float32: to compute with."""
        return Arrays(self._places, read_wide)

    @property
    def scalars(self) -> "Scalars":
        """The tensors of one element, as numbers."""
        return Scalars(self._places, self.specs)


@dataclass(frozen=True, slots=True)
class Arrays(Mapping[str, "Array"]):
    """The tensors of a checkpoint, as arrays of numpy where numpy has their type."""

    places: Mapping[str, "Place | Tensor"]
    read: "Callable[[Place], Array]" = read_array

    def __getitem__(self, name: str) -> "Array":
        place = self.places[name]
        return self.read(place) if isinstance(place, Place) else place

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


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
        return read_number(place, name) if isinstance(place, Place) else float(place.item())

    def __contains__(self, name: object) -> bool:
        return name in self.specs and self.specs[str(name)].numel == 1

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.places if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
