"""Put finished factors together: an adapter in the safe profile, laid out before it is filled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_tools.errors import CheckpointError
from lora_tools.files.disk import write_text
from lora_tools.files.layout import Layout, layout
from lora_tools.files.writer import TensorWriter
from lora_tools.formats.folding import fold
from lora_tools.formats.manifest import Extra, Manifest
from lora_tools.formats.registry import PEFT
from lora_tools.text import config_text
from lora_tools.verbs.extract.keep import Keep
from lora_tools.verbs.extract.plan import BIAS, ExtractPlan, Item
from lora_tools.verbs.extract.rows import ExtractRow


def describe(plan: ExtractPlan, items: Sequence[Item], rows: Sequence[ExtractRow]) -> Manifest:
    """Return the adapter that these rows make."""
    pairs = list(zip(items, rows, strict=True))
    modules = [
        plan.module(item, row.rank_stored) for item, row in pairs if row.outcome == "extracted"
    ]
    full = [_extra(plan, item) for item, row in pairs if row.outcome == "full"]
    others = plan.unchanged - {module.name for module in modules}
    return PEFT.start(modules, others, full, plan.options.base_model)


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
    modules = {module.name: module for module in manifest.modules}
    extras = iter(manifest.extras)
    with TensorWriter(folder / PEFT.files[0], plan_file(manifest)) as file:
        for item, row, name in zip(items, rows, names, strict=True):
            if row.outcome == "full":
                file.put(next(extras).key, memoryview(_whole(plan, item, keep).data))
            elif row.outcome == "extracted":
                kept = keep.load(name)
                if kept is None:
                    raise CheckpointError(f"{keep.folder}: {name} has gone while it was needed")
                module = modules[row.module]
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


def _extra(plan: ExtractPlan, item: Item) -> Extra:
    name = item.pair.name
    owners = {other.pair.place.module for other in plan.items if other.pair.place}
    bias = name.endswith(BIAS) and name.removesuffix(BIAS) in owners
    return Extra(name, item.pair.tuned_spec, "bias" if bias else "modules_to_save")


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
