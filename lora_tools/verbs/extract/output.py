"""Put finished factors together: an adapter in the safe profile, laid out before it is filled."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from lora_tools.architectures.conventions import TOKENS, ends
from lora_tools.errors import CheckpointError
from lora_tools.files.disk import write_text
from lora_tools.files.layout import Layout, layout
from lora_tools.files.writer import TensorWriter
from lora_tools.formats.folding import fold
from lora_tools.formats.manifest import Extra, Manifest
from lora_tools.formats.registry import PEFT
from lora_tools.matching.ties import tie_of
from lora_tools.text import config_text
from lora_tools.verbs.extract.keep import Keep
from lora_tools.verbs.extract.plan import BIAS, ExtractPlan, Item, owner
from lora_tools.verbs.extract.rows import ExtractRow


def describe(plan: ExtractPlan, items: Sequence[Item], rows: Sequence[ExtractRow]) -> Manifest:
    """Return the adapter that these rows make."""
    modules = [
        plan.module(item, row.rank_stored)
        for item, row in zip(items, rows, strict=True)
        if row.outcome == "extracted"
    ]
    lora = {i.pair.place.module for i in plan.items if i.pair.place and i.treatment == "lora"}
    full = [extra for item in stored_whole(items, rows) for extra in _extras(plan, item, lora)]
    others = plan.unchanged - {module.name for module in modules}
    tying = plan.tied and any(ends(extra.key, TOKENS) for extra in full)
    return PEFT.start(modules, others, full, plan.options.base_model, tying=tying)


def stored_whole(items: Sequence[Item], rows: Sequence[ExtractRow]) -> list[Item]:
    """Return the items that are written whole: those that changed, and what is in their modules."""
    pairs = list(zip(items, rows, strict=True))
    changed = {owner(item.pair.name) for item, row in pairs if row.outcome == "carried"}

    def beside(item: Item) -> bool:
        return item.treatment == "full" and owner(item.pair.name) in changed

    return [
        item
        for item, row in pairs
        if row.outcome == "carried" or (row.outcome == "unchanged" and beside(item))
    ]


def plan_file(manifest: Manifest) -> Layout:
    """Return where every tensor of the file will be."""
    return layout(manifest.specs, manifest.metadata)


def write(
    folder: Path,
    plan: ExtractPlan,
    items: Sequence[Item],
    rows: Sequence[ExtractRow],
    names: Sequence[str],
    keep: Keep,
) -> Manifest:
    """Fill an empty folder with the adapter; return what it is.

    ``names`` are what each row's factors are kept under. Memory holds one module at a time.
    """
    manifest = describe(plan, items, rows)
    modules = iter(manifest.modules)
    extras = iter(manifest.extras)
    whole = {item.number for item in stored_whole(items, rows)}
    with TensorWriter(folder / PEFT.files[0], plan_file(manifest)) as file:
        for item, row, name in zip(items, rows, names, strict=True):
            if item.number in whole:
                content = memoryview(_whole(plan, item, keep).data)
                for _ in _extras(plan, item, ()):
                    file.put(next(extras).key, content)
            elif row.outcome == "extracted":
                kept = keep.load(name)
                if kept is None:
                    raise CheckpointError(f"{keep.folder}: {name} has gone while it was needed")
                module = next(modules)
                b, a = fold(module, kept.arrays["b"], kept.arrays["a"])
                file.put(module.parts["b"].key, _bytes(b))
                file.put(module.parts["a"].key, _bytes(a))
    write_text(folder / str(PEFT.config_file), config_text(manifest.config))
    return manifest


def save_whole(plan: ExtractPlan, item: Item, keep: Keep) -> str:
    """Keep the bytes of a tensor whose file will be gone when the adapter is written.

    Returns what they are kept under.
    """
    name = _whole_name(item)
    if keep.load(name) is None:
        keep.save(name, {"bytes": plan.tuned.tensors.bytes_of(item.pair.tuned.key)}, {})
    return name


def _whole(plan: ExtractPlan, item: Item, keep: Keep) -> np.ndarray:
    kept = keep.load(_whole_name(item))
    return (
        plan.tuned.tensors.bytes_of(item.pair.tuned.key) if kept is None else kept.arrays["bytes"]
    )


def _whole_name(item: Item) -> str:
    return f"{item.number:05d}-whole"


def _extras(plan: ExtractPlan, item: Item, adapted: Collection[str]) -> Iterator[Extra]:
    """Yield what stores an item whole: an embedding that is the head twice, as PEFT does."""
    name = item.pair.name
    bias = name.endswith(BIAS) and name.removesuffix(BIAS) in adapted
    yield Extra(name, item.pair.tuned_spec, "bias" if bias else "modules_to_save")
    if plan.tied and ends(name, TOKENS) and (tie := tie_of(plan.base)):
        yield Extra(tie.head, item.pair.tuned_spec, "modules_to_save")


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
