"""The folder of a merged model, beside its weights: configuration, index, tokenizer, card."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_tools import card
from lora_tools.adapter import README, REPORT
from lora_tools.files.disk import write_text
from lora_tools.files.fingerprint import fingerprint, place
from lora_tools.files.location import Location, entries
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX
from lora_tools.files.place import Place
from lora_tools.files.sides import FOLDER, carry, side_files, why_not
from lora_tools.merging import MergePlan, configured
from lora_tools.model import CONFIG, Model
from lora_tools.text import config_text
from lora_tools.verbs.merge.outcome import Merged
from lora_tools.verbs.merge.shards import Shards

TOKENIZER = (
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.",
    "merges.txt",
    "chat_template",
    "spiece.model",
    "sentencepiece",
)
"""How the names of the files of a tokenizer begin."""


def complete(merge_plan: MergePlan, files: Shards, report: Merged, folder: Path) -> None:
    """Add everything but weights to a folder, and say in the report what was not copied."""
    for name, index in files.indices.items():
        write_text(folder / name, index)
    left_out = _copy_sides(merge_plan, folder)
    report.left_out = {**report.left_out, **left_out}
    if merge_plan.base.config or merge_plan.config:
        _write_config(merge_plan, folder)
    base, section = merge_plan.base.path, report.to_markdown()
    if base.is_dir():
        report.notes += card.carry(base / README, folder / README, section)
    if not (folder / README).exists():
        write_text(folder / README, card.with_section("", section).lstrip())
    report.save(folder / REPORT)


def sources(merge_plan: MergePlan) -> Iterator[Location]:
    """Yield the files that the merged model is made of, as far as they are there."""
    base = merge_plan.base
    yield from base.tensors.files
    yield base.config_file
    if base.path.is_dir():
        yield from side_files(base.path, (base.config_file.name, README, REPORT)).carried
    for part in _parts(base):
        yield from side_files(part, ()).carried
    for weighted in merge_plan.adapters:
        yield from weighted.adapter.files


def purpose(merge_plan: MergePlan, files: Shards) -> dict[str, Any]:
    """Return a digest of all that decides the bytes of the weights: inputs, plan and layout."""
    inputs = {
        values.path
        for values in merge_plan.base.tensors.arrays.places.values()
        if isinstance(values, Place)
    }
    for weighted in merge_plan.adapters:
        inputs.add(weighted.adapter.tensors.path)
    document = {
        "inputs": [fingerprint(path) for path in sorted(inputs, key=str)],
        "weights": [[place(each.adapter.path), each.weight] for each in merge_plan.adapters],
        "modules": [
            [entry.key, sorted(entry.modules.items())]
            for entry in merge_plan.entries.values()
            if not entry.plain
        ],
        "left_out": sorted(merge_plan.left_out),
        "shards": [[shard.name, shard.layout.header.hex()] for shard in files.shards],
    }
    digest = hashlib.blake2b(json.dumps(document).encode(), digest_size=16).hexdigest()
    return {"merge": digest}


def _write_config(merge_plan: MergePlan, folder: Path) -> None:
    """Write the configuration; byte for byte the base's if nothing in it changed."""
    source = merge_plan.base.config_file
    if merge_plan.config == merge_plan.base.config:
        carry(source, folder / source.name)
        return
    write_text(folder / source.name, config_text(merge_plan.config) + "\n")


def _copy_sides(merge_plan: MergePlan, folder: Path) -> dict[str, str]:
    base = merge_plan.base.path
    if not base.is_dir():
        return {}
    parts = _parts(merge_plan.base)
    ours = (merge_plan.base.config_file.name, README, REPORT, *(part.name for part in parts))
    sides = side_files(base, ours)
    for file in sides.carried:
        carry(file, folder / file.name)
    left_out = dict(sides.left_out)
    for part in parts:
        left_out |= _copy_part(merge_plan, part, folder / part.name)
    if merge_plan.grown:
        for file in _tokenizers(merge_plan):
            (folder / file.name).unlink(missing_ok=True)
            carry(file, folder / file.name)
    replaced = {merge_plan.base.tensors.origin(key)[0] for key in merge_plan.base.tensors}
    return {
        name: why
        for name, why in left_out.items()
        if name not in replaced and not name.endswith(INDEX)
    }


def _parts(base: Model) -> list[Location]:
    """Return the folders of a pipeline: those of its models, and a tokenizer's or scheduler's.

    None that is a link out of it: nothing is taken along from elsewhere.
    """
    if not base.tensors.parts:
        return []
    found = (each for each in entries(base.path) if not each.name.startswith("."))
    return [each for each in found if why_not(each) == FOLDER]


def _copy_part(merge_plan: MergePlan, part: Location, folder: Path) -> dict[str, str]:
    """Copy what a folder of a pipeline holds beside weights; return what of it is left out."""
    folder.mkdir(exist_ok=True)
    sides = side_files(part, ())
    for file in sides.carried:
        carry(file, folder / file.name)
    if part.name in merge_plan.base.tensors.parts and (part / CONFIG).is_file():
        old = read_object(part / CONFIG)
        if (new := configured(old, merge_plan.options.dtype)) != old:
            (folder / CONFIG).unlink()
            write_text(folder / CONFIG, config_text(new) + "\n")
    return {f"{part.name}/{name}": why for name, why in sides.left_out.items()}


def _tokenizers(merge_plan: MergePlan) -> Iterator[Location]:
    """Yield the adapters' files of a tokenizer: with a grown vocabulary they are the right ones."""
    for weighted in merge_plan.adapters:
        for file in weighted.adapter.side_files().carried:
            if file.name.startswith(TOKENIZER):
                yield file
