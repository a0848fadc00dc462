"""Merge plans: everything that becomes of a base under adapters, known from headers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_tools.architectures.conventions import TOKENS, ends
from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.files.dtypes import DTYPES, FLOATS
from lora_tools.files.header import Spec
from lora_tools.matching import Swap
from lora_tools.matching.ties import tie_of
from lora_tools.merging.entry import TensorPlan
from lora_tools.merging.matched import WeightedAdapter
from lora_tools.merging.planner import Options, Planner
from lora_tools.merging.sources import sources
from lora_tools.model import Model
from lora_tools.quantised import FLOAT8, READABLE, check
from lora_tools.quantised.configured import SECTIONS


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Every tensor of the merged model by name, and its configuration."""

    base: Model
    adapters: tuple[WeightedAdapter, ...]
    entries: Mapping[str, TensorPlan]
    config: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What of the adapters and the base is not in the result, and why."""
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    grown: bool = False
    """Whether the vocabulary has another size than the base's."""
    swaps: Mapping[str, tuple[Swap, ...]] = field(default_factory=dict)
    """What changes before the names of each adapter."""


def plan(
    base: Model, adapters: Sequence[WeightedAdapter], options: Options | None = None
) -> MergePlan:
    """Return the plan of a merge; nothing but headers is read.

    Raises `FormatError` for unmatched entries, and `UnsupportedError`, with the reason, for
    what cannot be merged rightly.
    """
    options = options or Options()
    check(base, "Merge into the weights it was quantised from, and quantise the result again.")
    found, scales = sources(base)
    tie = tie_of(base)
    if options.untie and tie is None:
        raise PolicyError(f"{base.path}: its embeddings are not tied, so there is nothing to untie")
    entries = {
        key: TensorPlan(key, found[key].spec, found[key])
        for key in base.tensors.specs
        if key not in scales
    }
    if tie and options.untie:
        entries[tie.head] = replace(entries[tie.embedding], key=tie.head)
    planner = Planner(base, entries, tie, options)
    for weighted in adapters:
        planner.add(weighted)
    planner.settle()
    general = _general(base)
    entries = {key: _typed(entry, options.dtype, general) for key, entry in planner.entries.items()}
    touched = [key for key, entry in entries.items() if not entry.plain]
    if not any(entry.patches or entry.tokens or entry.source.adapter for entry in entries.values()):
        planner.notes.append("The adapters change nothing of this base.")
    _check_types(base, [entries[key] for key in touched])
    config, grown = _configured(base, entries, options, dequantised=bool(scales))
    if grown:
        planner.notes.append(
            f"The vocabulary has {grown[1]:,} entries where the base has {grown[0]:,}."
        )
    if scales and options.dtype:
        planner.left_out |= dict.fromkeys(sorted(scales), "its scale is in the weights now")
    elif scales:
        raise UnsupportedError(
            f"{base.path}: a base of scaled float8: {some(sorted(scales), 2)}"
        ).hint("Pass --dtype bfloat16 (or float16, float32) to multiply it out.")
    return MergePlan(
        base,
        tuple(adapters),
        entries,
        config,
        planner.left_out,
        tuple(planner.notes),
        grown is not None,
        planner.swaps,
    )


def _typed(entry: TensorPlan, dtype: str | None, general: str | None) -> TensorPlan:
    """Give an entry the element type that was asked for, where it has the base's general one."""
    if dtype is None:
        return entry
    if entry.spec.dtype != general and entry.spec.dtype not in FLOAT8:
        return entry
    return replace(entry, spec=Spec(dtype, entry.spec.shape))


def _general(base: Model) -> str | None:
    """Return the floating type that most of a base's elements have."""
    counts: dict[str, int] = {}
    for spec in base.tensors.specs.values():
        if spec.dtype in FLOATS:
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    return max(counts, key=lambda code: counts[code], default=None)


def _check_types(base: Model, touched: list[TensorPlan]) -> None:
    packed = [
        f"{entry.key} ({entry.source.spec.dtype})"
        for entry in touched
        if entry.source.spec.dtype not in READABLE
    ]
    if packed:
        raise UnsupportedError(
            f"{base.path}: not of a type that weights are added to: {some(packed)}"
        ).hint("Give a base in bfloat16, float16 or float32.")
    bad = [
        f"{entry.key} ({entry.source.spec.dtype} to {entry.spec.dtype})"
        for entry in touched
        if entry.spec.dtype not in FLOATS
    ]
    if bad:
        raise UnsupportedError(f"{base.path}: cannot be rounded to their type: {some(bad)}").hint(
            "Pass --dtype bfloat16 (or float16, float32) to write a type that can."
        )


def _configured(
    base: Model, entries: Mapping[str, TensorPlan], options: Options, *, dequantised: bool
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the configuration that fits the entries, and the old and new size of a vocabulary."""
    config: dict[str, Any] = json.loads(json.dumps(dict(base.config)))
    text = base.fields.mapping("text_config").values and config["text_config"]
    sections = [config, *([text] if text else [])]
    grown = None
    for key, entry in entries.items():
        old = base.tensors.specs.get(key)
        if old and ends(key, TOKENS) and old.shape[:1] != entry.spec.shape[:1]:
            grown = (old.shape[0], entry.spec.shape[0])
    for section in sections:
        if grown and "vocab_size" in section:
            section["vocab_size"] = grown[1]
        if options.untie and (section is config or "tie_word_embeddings" in section):
            section["tie_word_embeddings"] = False
        if options.dtype and (name := DTYPES[options.dtype].torch):
            section |= {key: name for key in ("dtype", "torch_dtype") if key in section}
    for section in sections if dequantised else ():
        for name in SECTIONS:
            section.pop(name, None)
    return config, grown
