"""Shards: which file each tensor of the merged model goes to, and where in it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_tools.errors import CheckpointError
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import Slot
from lora_tools.files.layout import Layout, layout
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX, PICKLED_INDEX
from lora_tools.files.place import Place
from lora_tools.files.stamp import ROOM
from lora_tools.files.typed import Fields
from lora_tools.merging import MergePlan, TensorPlan
from lora_tools.text import config_text

SAFETENSORS = ".safetensors"
QUANTISED = "_quantization_metadata"
"""Where ComfyUI's files say in their header how their weights are scaled."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of weights: its entries in file order, and its layout."""

    name: str
    """As seen from the folder of the merged model."""
    entries: tuple[TensorPlan, ...]
    layout: Layout
    part: str = ""
    """The model of a pipeline that it is of, by its folder."""

    def slot(self, entry: TensorPlan) -> Slot:
        """Return where an entry lies in the file, which has it without its model's name."""
        return self.layout.slots[stored_name(entry, self.part)]


@dataclass(frozen=True, slots=True)
class Shards:
    """All files of weights, and the indices that find tensors in them, by their names."""

    shards: tuple[Shard, ...]
    indices: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of all files of weights."""
        return sum(shard.layout.size for shard in self.shards)


def shards(merge_plan: MergePlan, most: int | None = None) -> Shards:
    """Lay the merged model out: as the base is, or in files of at most ``most`` bytes each.

    A tensor larger than ``most`` has a file of its own. A pipeline has the files of each model in
    that one's folder.
    """
    base = merge_plan.base.tensors
    made: list[Shard] = []
    indices: dict[str, str] = {}
    for part, own in (base.parts or {"": base}).items():
        entries = [
            e for e in merge_plan.entries.values() if not part or e.key.startswith(f"{part}.")
        ]
        groups = _as_base(entries, own, part) if most is None else _at_most(entries, own, most)
        metadata = dict(own.metadata) or {"format": "pt"}
        if any(not entry.source.weight.whole for entry in entries):
            metadata.pop(QUANTISED, None)  # the scales that it speaks of are in the weights now
        # The hashes are of other weights; to find those of these would read all of them again.
        metadata = {key: value for key, value in metadata.items() if key not in ROOM}
        mine = tuple(_shard(name, each, part, metadata) for name, each in groups.items())
        made += mine
        if len(mine) > 1 or (most is None and own.path.name.endswith(INDEX)):
            name = f"{_stem(own.path.name)}{INDEX}"
            indices[f"{part}/{name}".lstrip("/")] = _index(own, mine)
    return Shards(tuple(made), indices)


def stored_name(entry: TensorPlan, part: str) -> str:
    """Return what a file of a part of a pipeline calls an entry."""
    return entry.key.removeprefix(f"{part}.") if part else entry.key


def _shard(
    name: str, entries: Iterable[TensorPlan], part: str, metadata: Mapping[str, str]
) -> Shard:
    entries = tuple(entries)
    specs = {stored_name(entry, part): entry.spec for entry in entries}
    return Shard(f"{part}/{name}".lstrip("/"), entries, layout(specs, metadata), part)


def _as_base(
    entries: Iterable[TensorPlan], base: Checkpoint, part: str
) -> dict[str, list[TensorPlan]]:
    groups: dict[str, list[TensorPlan]] = {}
    last = _file_name(base.path.name)
    for entry in entries:
        stored, place = stored_name(entry, part), entry.source.values
        if stored in base:
            last = _file_name(base.origin(stored)[0])
        elif isinstance(place, Place) and not entry.source.adapter:
            last = _file_name(place.path.name)
        groups.setdefault(last, []).append(entry)  # a tensor that is new joins the last one's file
    return groups


def _at_most(
    entries: Iterable[TensorPlan], base: Checkpoint, most: int
) -> dict[str, list[TensorPlan]]:
    files: list[list[TensorPlan]] = []
    room = -1
    for entry in entries:
        if entry.spec.nbytes > room:
            files.append([])
            room = most
        files[-1].append(entry)
        room -= entry.spec.nbytes
    stem = _stem(base.path.name)
    if len(files) == 1:
        return {f"{stem}.safetensors": files[0]}
    return {
        f"{stem}-{number:05d}-of-{len(files):05d}.safetensors": each
        for number, each in enumerate(files, 1)
    }


def _file_name(name: str) -> str:
    """Return what a file of the base is called once its tensors are safetensors.

    >>> _file_name("sd15.ckpt"), _file_name("pytorch_model.bin"), _file_name("unet.safetensors")
    ('sd15.safetensors', 'model.safetensors', 'unet.safetensors')
    """
    return name if name.endswith(SAFETENSORS) else f"{_stem(name)}{SAFETENSORS}"


def _stem(name: str) -> str:
    """Return what the files of a model are called before their numbers.

    >>> _stem("model.safetensors.index.json"), _stem("model-00001-of-00002.safetensors")
    ('model', 'model')
    """
    stem = Path(name.removesuffix(INDEX).removesuffix(PICKLED_INDEX)).name
    if stem == Path(name).name:
        stem = Path(name).stem
    stem = re.sub(r"-\d+-of-\d+$", "", stem)
    return "model" if stem in ("", "pytorch_model") else stem


def _index(base: Checkpoint, made: tuple[Shard, ...]) -> str:
    """Return the index, with the size in bytes that the tensors truly have."""
    metadata: dict[str, object] = {}
    if base.path.name.endswith(INDEX):
        index = Fields(str(base.path), read_object(base.path), CheckpointError)
        metadata = dict(index.mapping("metadata").values)
    entries = [entry for shard in made for entry in shard.entries]
    metadata["total_size"] = sum(entry.spec.nbytes for entry in entries)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(entry.spec.numel for entry in entries)
    weights = {
        stored_name(entry, shard.part): Path(shard.name).name
        for shard in made
        for entry in shard.entries
    }
    document = {"metadata": metadata, "weight_map": dict(sorted(weights.items()))}
    return config_text(document) + "\n"
