"""Bases: the weights of a model by name, as numbers, whatever encoding they are stored in."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_tools import codecs
from lora_tools.codecs import Codec, Plain
from lora_tools.codecs.declared import declared
from lora_tools.codecs.unread import recognised
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.files.place import Place, Reader, expect
from lora_tools.model import Model
from lora_tools.shapes import Float
from lora_tools.update import Array


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight: rows of bytes in files, and of numbers to whoever asks."""

    codec: Codec
    values: tuple[Place | Array, ...]
    """Where each part of it lies; a pickle's are in memory."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.codec.name

    @property
    def spec(self) -> Spec:
        """Its shape, and the type in which its first part is stored."""
        return Spec(self.codec.parts[0].spec.dtype, self.codec.shape)

    @property
    def plain(self) -> bool:
        """Whether its elements are stored as they are."""
        return isinstance(self.codec, Plain)

    @property
    def whole(self) -> bool:
        """Whether one tensor is all of it, whose bytes can be copied."""
        return len(self.values) == 1

    @property
    def is_numbers(self) -> bool:
        """Whether it can be read as numbers: those of integers mean something else."""
        return not self.plain or self.spec.dtype in FLOATS

    @property
    def files(self) -> set[Location]:
        """The files that it is read from."""
        return {place.path for place in self.values if isinstance(place, Place)}

    @property
    def position(self) -> tuple[str, int]:
        """What sorts weights into the order of the files."""
        place = self.values[0]
        return (str(place.path), place.slot.start) if isinstance(place, Place) else ("", 0)

    def expect(self) -> None:
        """Tell the kernel that it will be read soon, so that the disk works meanwhile."""
        for place in self.values:
            expect(place)

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "m k"]:
        """Return rows, which are vectors of the last dimension, in float64; exact."""
        with Rows(self, self.codec.shape[-1] if self.codec.shape else 1) as rows:
            return rows.wide(start, stop)


class Rows:
    """Reads the rows of a weight as a matrix of so many columns, into buffers that it reuses."""

    def __init__(self, weight: Weight, columns: int) -> None:
        self._codec, self._columns = weight.codec, columns
        self._stack = ExitStack()
        self._readers = [Reader(values) for values in weight.values]
        self._kept: list[tuple[tuple[int, int], np.ndarray]] = []

    def __enter__(self) -> "Rows":
        for reader in self._readers:
            self._stack.enter_context(reader)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def raw(self, low: int, high: int) -> np.ndarray:
        """Return the bytes of rows in the first part, good until the next call."""
        first, *_ = self._codec.spans(low * self._columns, high * self._columns)
        return self._readers[0].read(*first)

    def decode(self, raw: np.ndarray, low: int, high: int, out: Float[np.ndarray, "n"]) -> None:
        """Fill ``out``, float32 or float64, with the numbers of rows whose bytes were read."""
        start, stop = low * self._columns, high * self._columns
        _, *spans = self._codec.spans(start, stop)
        if [span for span, _ in self._kept] != spans:  # most rows share what they are scaled by
            rest = zip(self._readers[1:], spans, strict=True)
            self._kept = [(span, reader.read(*span)) for reader, span in rest]
        self._codec.decode([raw, *(part for _, part in self._kept)], start, stop, out)

    def wide(self, low: int, high: int) -> Float[np.ndarray, "m k"]:
        """Return rows in float64."""
        out = np.empty((high - low) * self._columns)
        self.decode(self.raw(low, high), low, high, out)
        table: Float[np.ndarray, "m k"] = out.reshape(high - low, self._columns)
        return table


class Base(Mapping[str, Weight]):
    """The weights of a model by name, in the order of its files; headers are all that was read."""

    def __init__(self, model: Model, weights: Mapping[str, Weight], aside: frozenset[str]) -> None:
        self.model = model
        self.aside = aside
        """Tensors that only belong to the encoding of weights, such as scales."""
        self.specs = {name: weight.spec for name, weight in weights.items()}
        self._weights = weights

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def path(self) -> Location:
        """What was asked for: a folder or a file."""
        return self.model.path

    @property
    def encoded(self) -> list[Weight]:
        """The weights that are more than one tensor."""
        return [weight for weight in self.values() if not weight.whole]


def base_of(model: Model, remedy: str) -> Base:
    """Return the weights of a model. Costs names, types and shapes.

    The tensors decide; a configuration may only agree. Raises `UnsupportedError`, with the remedy,
    for what no codec reads: what is packed, or has a scale that is not known, is never taken for
    plain numbers.
    """
    specs, places = model.tensors.specs, model.tensors.arrays.places
    found = [_codec(key, model) for key in specs]
    encoded = [codec for codec in found if not isinstance(codec, Plain)]
    if other := recognised(specs, encoded):
        raise UnsupportedError(
            f"{model.path}: quantised with {other.encoding}: {some(other.tensors)}"
        ).hint(remedy)
    read = {method: codec.title for codec in codecs.CODECS for method in codec.methods}
    if method := declared(model.config, read, {codec.title for codec in encoded}):
        raise UnsupportedError(
            f"{model.path}: quantised with {method}, as its config.json says"
        ).hint(remedy)
    for codec in encoded:
        if codec.misfit:
            raise UnsupportedError(f"{model.path}: {codec.misfit}")
    aside = _aside(encoded, specs)
    weights = {
        codec.name: Weight(codec, tuple(places[part.key] for part in codec.parts))
        for codec in found
        if codec.parts[0].key not in aside
    }
    return Base(model, weights, aside)


def plain(key: str, spec: Spec, values: Any) -> Weight:
    """Return a tensor that is no base's as a weight."""
    return Weight(Plain(key, spec), (values,))


def _codec(key: str, model: Model) -> Codec:
    known = (codec.detect(key, model) for codec in codecs.CODECS)
    return next(codec for codec in known if codec is not None)


def _aside(encoded: list[Codec], specs: Mapping[str, Spec]) -> frozenset[str]:
    """Return what goes when weights are decoded; nothing, if none is more than one tensor."""
    scaled = [codec for codec in encoded if len(codec.parts) > 1]
    kinds = {type(codec) for codec in scaled}
    parts = {part.key for codec in scaled for part in codec.parts[1:]}
    return frozenset(
        parts | {key for key in specs if any(kind.belongs(key, specs) for kind in kinds)}
    )
