"""Merge plans: everything that becomes of a base under adapters, known from headers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_tools.adapter import Adapter
from lora_tools.architectures.conventions import TOKENS, ends
from lora_tools.base import base_of
from lora_tools.codecs.declared import SECTIONS
from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.files.address import Address, reopened
from lora_tools.files.dtypes import DTYPES, FLOATS
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Module
from lora_tools.matching import Swap
from lora_tools.matching.ties import tie_of
from lora_tools.merging.matched import WeightedAdapter
from lora_tools.merging.planner import MergeOptions, Planner
from lora_tools.merging.tensor_plan import BaseValues, TensorPlan
from lora_tools.model import Model


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Every tensor of the merged model by name, and its configuration."""

    base: Model
    adapters: tuple[WeightedAdapter, ...]
    entries: Mapping[str, TensorPlan]
    config: Mapping[str, Any]
    options: MergeOptions
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What of the adapters and the base is not in the result, and why."""
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    grown: bool = False
    """Whether the vocabulary has another size than the base's."""
    swaps: Mapping[str, tuple[Swap, ...]] = field(default_factory=dict)
    """What changes before the names of each adapter."""
    partial: tuple[str, ...] = ()
    """Of adapters that are not merged whole: how much of each is, a sentence each."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: another process plans the same from the same headers, once."""
        return reopened, (self.address,)

    @property
    def removed(self) -> Iterator[tuple[WeightedAdapter, Module]]:
        """The modules that are left out because it was asked for."""
        for number, weighted in enumerate(self.adapters, 1):
            modules = weighted.adapter.manifest.modules
            factors = self.options.selection.of(modules, number)
            yield from ((weighted, module) for module in modules if not factors[module.name])

    @property
    def address(self) -> Address:
        """How another process plans the same."""
        weights = tuple(each.weight for each in self.adapters)
        adapters = (each.adapter.address for each in self.adapters)
        return Address(_plan_again, (self.base.address, self.options, weights, *adapters))


def plan(
    base: Model, adapters: Sequence[WeightedAdapter], options: MergeOptions | None = None
) -> MergePlan:
    """Return the plan of a merge; nothing but headers is read.

    Raises `FormatError` for unmatched entries, and `UnsupportedError`, with the reason, for
    what cannot be merged rightly.
    """
    options = options or MergeOptions()
    weights = base_of(
        base, "Merge into the weights it was quantised from, and quantise the result again."
    )
    tie = tie_of(base)
    if options.untie and tie is None:
        raise PolicyError(f"{base.path}: its embeddings are not tied, so there is nothing to untie")
    entries = {
        key: TensorPlan(key, weight.spec, BaseValues(weight)) for key, weight in weights.items()
    }
    if tie:  # as PEFT sees it: two modules, which are found to be one at the end, or not
        entries[tie.head] = replace(entries[tie.embedding], key=tie.head)
    planner = Planner(base, entries, tie, options)
    options.selection.check([weighted.adapter.manifest.modules for weighted in adapters])
    for number, weighted in enumerate(adapters, 1):
        planner.add(weighted, number)
    planner.settle()
    most = general(base.tensors.specs)
    entries = {key: _typed(entry, options.dtype, most) for key, entry in planner.entries.items()}
    touched = [key for key, entry in entries.items() if not entry.plain]
    if not any(entry.patches or entry.tokens or entry.source.adapter for entry in entries.values()):
        planner.notes.append("The adapters change nothing of this base.")
    _check_types(base, [entries[key] for key in touched])
    config, grown = _configured(
        base, entries, options, dequantised=bool(weights.encoded), untied=planner.untied
    )
    if grown:
        planner.notes.append(
            f"The vocabulary has {grown[1]:,} entries where the base has {grown[0]:,}."
        )
    if weights.encoded and options.dtype:
        planner.left_out |= dict.fromkeys(sorted(weights.aside), "its scale is in the weights now")
    elif weights.encoded:
        kinds = " and ".join(sorted({weight.codec.title for weight in weights.encoded}))
        raise UnsupportedError(
            f"{base.path}: a base of {kinds} with scales: {some(sorted(weights.aside), 2)}"
        ).hint("Pass --dtype bfloat16 (or float16, float32) to multiply it out.")
    return MergePlan(
        base,
        tuple(adapters),
        entries,
        config,
        options,
        planner.left_out,
        (*base.tensors.notes, *planner.notes, *planner.partial),
        grown is not None,
        planner.swaps,
        tuple(planner.partial),
    )


def _plan_again(
    base: Model, options: MergeOptions, weights: Sequence[float], *adapters: Adapter
) -> MergePlan:
    """Plan a merge for the jobs of another process."""
    return plan(
        base, [WeightedAdapter(*pair) for pair in zip(adapters, weights, strict=True)], options
    )


def _typed(entry: TensorPlan, dtype: str | None, most: str | None) -> TensorPlan:
    """Give an entry the dtype that was asked for, where it has the base's general one."""
    if dtype is None:
        return entry
    if entry.spec.dtype != most and entry.source.weight.plain:
        return entry
    return replace(entry, spec=Spec(dtype, entry.spec.shape))


def general(specs: Mapping[str, Spec]) -> str | None:
    """Return the floating type that most elements of a model have."""
    counts: dict[str, int] = {}
    for spec in specs.values():
        if spec.dtype in FLOATS:
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    return max(counts, key=lambda code: counts[code], default=None)


def _check_types(base: Model, touched: list[TensorPlan]) -> None:
    packed = [
        f"{entry.key} ({entry.source.spec.dtype})"
        for entry in touched
        if not entry.source.weight.is_numbers
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
    base: Model,
    entries: Mapping[str, TensorPlan],
    options: MergeOptions,
    *,
    dequantised: bool,
    untied: bool,
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
        if untied:
            section["tie_word_embeddings"] = False
    for section in sections if dequantised else ():
        for name in SECTIONS:
            section.pop(name, None)
    for section in sections:
        section |= configured(section, options.dtype)
    return config, grown


def configured(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return a configuration that names the dtype of the weights, where it names one."""
    name = DTYPES[dtype].torch if dtype else None
    return {
        key: name if name and key in ("dtype", "torch_dtype") else value
        for key, value in config.items()
    }
