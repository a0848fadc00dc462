"""Shards: which file each tensor of the merged model goes to, and where in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_tools.errors import CheckpointError
from lora_tools.files.layout import Layout, layout
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX
from lora_tools.files.place import Place
from lora_tools.files.typed import Fields
from lora_tools.merging import MergePlan, TensorPlan
from lora_tools.text import config_text

WEIGHTS = "model.safetensors"
QUANTISED = "_quantization_metadata"
"""Where ComfyUI's files say in their header how their weights are scaled."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of weights: its entries in file order, and its layout."""

    name: str
    entries: tuple[TensorPlan, ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Shards:
    """All files of weights, and the index that finds tensors in them."""

    shards: tuple[Shard, ...]
    index_name: str | None
    index: str

    @property
    def nbytes(self) -> int:
        """Size of all files of weights."""
        return sum(shard.layout.size for shard in self.shards)


def shards(merge_plan: MergePlan, most: int | None = None) -> Shards:
    """Lay the merged model out: as the base is, or in files of at most ``most`` bytes each.

    A tensor larger than ``most`` has a file of its own.
    """
    base = merge_plan.base.tensors
    groups = _as_base(merge_plan) if most is None else _at_most(merge_plan, most)
    metadata = dict(base.metadata) or {"format": "pt"}
    if any(not entry.source.weight.whole for entry in merge_plan.entries.values()):
        metadata.pop(QUANTISED, None)  # the scales that it speaks of are in the weights now
    made = tuple(
        Shard(name, tuple(entries), _laid_out(entries, metadata))
        for name, entries in groups.items()
    )
    stem = _stem(base.path.name)
    indexed = len(made) > 1 or (most is None and base.path.name.endswith(INDEX))
    return Shards(made, f"{stem}{INDEX}" if indexed else None, _index(merge_plan, made))


def _laid_out(entries: list[TensorPlan], metadata: Mapping[str, str]) -> Layout:
    return layout({entry.key: entry.spec for entry in entries}, metadata)


def _as_base(merge_plan: MergePlan) -> dict[str, list[TensorPlan]]:
    base = merge_plan.base.tensors
    places = base.arrays.places
    groups: dict[str, list[TensorPlan]] = {}
    last = WEIGHTS
    for key, entry in merge_plan.entries.items():
        weight = entry.source.weight
        place = places.get(key) if weight.plain else weight.values[0]
        if isinstance(place, Place):
            last = place.path.name
        groups.setdefault(last, []).append(entry)  # a tensor that is new joins the last one's file
    return groups


def _at_most(merge_plan: MergePlan, most: int) -> dict[str, list[TensorPlan]]:
    files: list[list[TensorPlan]] = []
    room = -1
    for entry in merge_plan.entries.values():
        if entry.spec.nbytes > room:
            files.append([])
            room = most
        files[-1].append(entry)
        room -= entry.spec.nbytes
    stem = _stem(merge_plan.base.tensors.path.name)
    if len(files) == 1:
        return {f"{stem}.safetensors": files[0]}
    return {
        f"{stem}-{number:05d}-of-{len(files):05d}.safetensors": entries
        for number, entries in enumerate(files, 1)
    }


def _stem(name: str) -> str:
    """Return what the files of a model are called before their numbers.

    >>> _stem("model.safetensors.index.json"), _stem("model-00001-of-00002.safetensors")
    ('model', 'model')
    """
    stem = Path(name.removesuffix(INDEX)).name.removesuffix(".safetensors")
    return re.sub(r"-\d+-of-\d+$", "", stem) or "model"


def _index(merge_plan: MergePlan, made: tuple[Shard, ...]) -> str:
    """Return the index, with the size in bytes that the tensors truly have."""
    path = merge_plan.base.tensors.path
    metadata: dict[str, object] = {}
    if path.name.endswith(INDEX):
        index = Fields(str(path), read_object(path), CheckpointError)
        metadata = dict(index.mapping("metadata").values)
    entries = [entry for shard in made for entry in shard.entries]
    metadata["total_size"] = sum(entry.spec.nbytes for entry in entries)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(entry.spec.numel for entry in entries)
    weights = {entry.key: shard.name for shard in made for entry in shard.entries}
    document = {"metadata": metadata, "weight_map": dict(sorted(weights.items()))}
    return config_text(document) + "\n"
