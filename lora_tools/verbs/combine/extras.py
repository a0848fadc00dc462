"""Tensors beside updates: differences add up, replacements of several adapters have to agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra
from lora_tools.linalg.factors import as_factor, host
from lora_tools.rewrite.source import Source
from lora_tools.update import Array
from lora_tools.verbs.combine.weights import Weights

DIFFERENCES = frozenset({"bias difference", "norm difference"})
"""Features that are added to what the base has; all others replace it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A tensor of one source, and what it is multiplied by."""

    source: Source
    extra: Extra
    weight: float

    @property
    def array(self) -> Array:
        """The tensor, read now."""
        return self.source.adapter.tensors.arrays[self.extra.key]


@dataclass(frozen=True)
class Extras(Mapping[str, Array]):
    """The tensors beside the updates of a combination, each made when it is asked for."""

    copies: Mapping[str, tuple[Copy, ...]]

    def __getitem__(self, key: str) -> Array:
        copies = self.copies[key]
        if len(copies) == 1 and copies[0].weight == 1.0:
            return copies[0].array
        if copies[0].extra.kind not in DIFFERENCES:
            return copies[0].array
        total = sum(copy.weight * host(copy.array) for copy in copies)
        kind = str(DTYPES[self.described[key].spec.dtype].torch)
        flat = as_factor(np.asarray(total).reshape(1, -1)).scaled(1.0, kind)[0].array
        return flat.reshape(self.described[key].spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.copies)

    def __len__(self) -> int:
        return len(self.copies)

    @property
    def described(self) -> dict[str, Extra]:
        """The tensors as the file will have them."""
        return {key: _described(copies) for key, copies in self.copies.items()}


def extras(sources: Sequence[Source], weights: Weights) -> Extras:
    """Return what becomes of the tensors beside the updates.

    Differences are weighted and added. A replacement is kept whole, since no weight has a meaning
    for it, where all adapters that have it agree. Reads those that several have. Raises
    `UnsupportedError` with the tensor's name where they disagree, or where a weight would take a
    replacement out.
    """
    copies: dict[str, list[Copy]] = {}
    for source, weight in zip(sources, weights.adapters, strict=True):
        for extra in source.manifest.extras:
            if weight:
                copies.setdefault(extra.key, []).append(Copy(source, extra, weight))
    for key, found in copies.items():
        _check(key, found)
        _check_named(key, found[0], sources[0])
    return Extras({key: tuple(found) for key, found in copies.items()})


def _check(key: str, copies: Sequence[Copy]) -> None:
    first = copies[0]
    for copy in copies:
        if copy.extra.kind != first.extra.kind or copy.extra.spec.shape != first.extra.spec.shape:
            raise FormatError(
                f"{key} is {first.extra.kind} {list(first.extra.spec.shape)} in"
                f" {first.source.path} and {copy.extra.kind} {list(copy.extra.spec.shape)} in"
                f" {copy.source.path}"
            )
        if first.extra.kind in DIFFERENCES:
            continue
        hint = f"Leave it out: --drop {first.extra.kind!r}."
        if copy.weight <= 0:
            raise UnsupportedError(
                f"{copy.source.path}: {key} ({first.extra.kind}) replaces what the base has, which"
                f" a weight of {copy.weight:g} cannot take out"
            ).hint(hint)
        if copy.extra.rows != first.extra.rows or not _equal(copy, first):
            raise UnsupportedError(
                f"{key} ({first.extra.kind}) is replaced by {first.source.path} and otherwise by"
                f" {copy.source.path}"
            ).hint(hint)


def _check_named(key: str, copy: Copy, first: Source) -> None:
    """Raise `UnsupportedError` for a replacement that the configuration would not name."""
    if copy.extra.kind in DIFFERENCES or copy.source is first or not first.format.config_file:
        return
    raise UnsupportedError(
        f"{copy.source.path}: {key} ({copy.extra.kind}) is not in {first.path}, whose"
        " configuration the result has, and a loader would leave it out"
    ).hint(f"Name that adapter first, or leave it out: --drop {copy.extra.kind!r}.")


def _equal(x: Copy, y: Copy) -> bool:
    return x is y or bool((host(x.array) == host(y.array)).all())


def _described(copies: Sequence[Copy]) -> Extra:
    first = copies[0].extra
    codes = {copy.extra.spec.dtype for copy in copies}
    if first.kind not in DIFFERENCES or len(codes) == 1:
        return first
    return first._replace(spec=Spec("F64" if "F64" in codes else "F32", first.spec.shape))
