"""What an adapter changes of the tensors of a base, and what of it is unmatched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_tools.adapter import Adapter
from lora_tools.architectures.conventions import HEADS, TOKENS, ends
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.formats.features import COPY
from lora_tools.formats.manifest import Extra, Module
from lora_tools.formats.sites import Linear
from lora_tools.matching import Matching, Site, Swap, match
from lora_tools.matching.pieces import Specs
from lora_tools.merging.differences import KINDS, differences
from lora_tools.merging.grouped import reads_others
from lora_tools.merging.tensor_plan import Patch, Tokens

SET_WEIGHT = ".set_weight"
"""The ending of a tensor that takes the place of a module's weight."""


@dataclass(slots=True)
class MatchedUpdates:
    """What one adapter does to the tensors of a base."""

    patches: dict[str, list[Patch]] = field(default_factory=dict)
    tokens: dict[str, list[Tokens]] = field(default_factory=dict)
    replaced: dict[str, Extra] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    """Names of the adapter that no tensor of the base matches, and why."""
    copies: dict[str, str] = field(default_factory=dict)
    """Names of the adapter that it has another tensor for, and why they are not used."""
    swaps: tuple[Swap, ...] = ()
    """What changes before the adapter's names."""


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """An adapter and the strength it is to be merged with."""

    adapter: Adapter
    weight: float = 1.0


def match_updates(
    weighted: WeightedAdapter,
    specs: Specs,
    config: Mapping[str, Any],
    factors: Mapping[str, float],
) -> MatchedUpdates:
    """Match everything that an adapter has with a base; ``config`` is the base's.

    ``factors``: what the updates of its modules are multiplied by beside its weight.
    Raises `FormatError` if it fits in several places equally well, and `UnsupportedError` for what
    no base weight can hold.
    """
    adapter, matched = weighted.adapter, MatchedUpdates()
    manifest = adapter.manifest
    adapter.check_order()
    if manifest.config.get("layer_replication"):
        raise UnsupportedError(
            f"{adapter.path}: layer_replication is set: its model has layers that the base shares"
        ).hint("Write the base out with its layers repeated, and point the adapter at that.")
    sideways = [module.name for module in manifest.modules if "columns" in module.parts]
    if sideways:
        raise UnsupportedError(
            f"{adapter.path}: DoRA by input column, of which a merge is not defined as PEFT's is:"
            f" {some(sideways)}"
        ).hint("Merge it with the tool that trained it.")
    matching = match(adapter, specs, config)
    matched.swaps = matching.swaps
    for extra in manifest.extras:
        if extra.rows is None and extra.kind not in KINDS:
            _place_extra(extra, matching, specs, matched)
    # A saved embedding may have more rows than the base's; what is added to it has to fit it.
    grown = dict(specs) | {key: extra.spec for key, extra in matched.replaced.items()}
    for extra in (each for each in manifest.extras if each.rows is not None):
        _place_tokens(weighted, extra, matching, grown, matched)
    found = matching.sites(grown)
    added = differences(adapter, matching, found, specs, config)
    for extra in manifest.extras:
        if extra.key in added:
            for piece in added[extra.key].pieces:
                patch = Patch(adapter, added[extra.key].module, piece, weighted.weight)
                matched.patches.setdefault(piece.key, []).append(patch)
        elif extra.kind in KINDS:
            matched.unmatched[extra.key] = f"no such tensor for its {extra.kind}"
    for module in manifest.modules:
        site = found[module.name]
        if site is None or site.misfit:
            matched.unmatched[module.name] = _why(module, site, grown, matching)
            continue
        if reads_others(adapter, module):
            matched.unmatched[module.name] = (
                "a convolution with groups, each of which reads all channels: its weight has no"
                " place for those of other groups"
            )
            continue
        weight = weighted.weight * factors[module.name]
        _place_module(adapter, module, weight, site, grown, matched)
    return matched


def check_matched(adapter: Adapter, matched: MatchedUpdates, specs: Specs) -> None:
    """Raise `FormatError`, with the names of both sides, if anything is unmatched."""
    if not matched.unmatched:
        return
    lines = [f"{name}: {why}" for name, why in matched.unmatched.items()]
    error = FormatError(f"{adapter.path}: {len(lines)} entries are unmatched in the base:")
    error.listing(lines, most=5).hint(f"The base has {some(specs)}.")
    raise error.hint(
        "Check that it is the base of this adapter, or pass --allow-missing to leave them out."
    )


def _place_module(
    adapter: Adapter,
    module: Module,
    weight: float,
    site: Site,
    specs: Specs,
    matched: MatchedUpdates,
) -> None:
    if "bias" in module.parts:
        key = _bias_of(site.pieces[0].key)
        size = module.parts["bias"].spec.numel
        if len(site.pieces) > 1 or key not in specs or specs[key].shape != (size,):
            matched.unmatched[f"{module.name}.bias"] = "the base layer has no bias to add it to"
            return
        whole = site.pieces[0]
        rows = (range(size),) if whole.transposed else whole.rows  # its order is the weight's
        piece = whole._replace(key=key, rows=rows, start=0, transposed=False)
        patch = Patch(adapter, module, piece, weight, bias=True)
        matched.patches.setdefault(key, []).append(patch)
    for piece in site.pieces:
        matched.patches.setdefault(piece.key, []).append(Patch(adapter, module, piece, weight))


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _place_tokens(
    weighted: WeightedAdapter,
    extra: Extra,
    matching: Matching,
    specs: Specs,
    matched: MatchedUpdates,
) -> None:
    if extra.kind == COPY:
        matched.copies[extra.key] = "the tokens of the embedding, which the head is tied to"
        return
    key = matching.key(extra, specs)
    if key is None:
        matched.unmatched[extra.name or extra.key] = f"no such tensor for its {extra.kind}"
        return
    spec, rows = specs[key], extra.rows or ()
    if len(rows) != extra.spec.shape[0] or extra.spec.shape[1:] != spec.shape[1:]:
        raise FormatError(
            f"{weighted.adapter.path}: {extra.key} of shape {list(extra.spec.shape)} for"
            f" {len(rows)} rows of {key}, which has {list(spec.shape)}"
        )
    beyond = [row for row in rows if not 0 <= row < spec.shape[0]]
    if beyond:
        raise FormatError(
            f"{weighted.adapter.path}: tokens {some(beyond)} of {key}, which has only"
            f" {spec.shape[0]} rows"
        ).hint("Resize the base's embeddings first, as was done for the training.")
    matched.tokens.setdefault(key, []).append(Tokens(weighted.adapter, extra))


def _place_extra(extra: Extra, matching: Matching, specs: Specs, matched: MatchedUpdates) -> None:
    name = extra.name or extra.key
    if extra.kind == COPY:
        matched.copies[extra.key] = "a copy of what PEFT loads, or what it was before training"
        return
    if name.endswith(SET_WEIGHT):
        extra = extra._replace(name=f"{name.removesuffix(SET_WEIGHT)}.weight")
    key = matching.key(extra, specs)
    if key is None:
        matched.unmatched[name] = f"no such tensor for its {extra.kind}"
        return
    spec = specs[key]
    if spec.shape != extra.spec.shape and not _grows(key, spec.shape, extra.spec.shape):
        matched.unmatched[name] = (
            f"has the shape {list(extra.spec.shape)}, the base's {key} {list(spec.shape)}"
        )
        return
    matched.replaced[key] = extra


def _grows(key: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a tensor may have another number of rows: those that a vocabulary counts."""
    key_prefix = _bias_of(key).removesuffix("bias") + "weight"
    return ends(key_prefix, (*TOKENS, *HEADS)) and before[1:] == after[1:]


def _why(module: Module, site: Site | None, specs: Specs, matching: Matching) -> str:
    if site is None or site.misfit is None:
        return matching.why(module.name)
    spec = specs.get(site.misfit)
    if spec and len(spec.shape) > 2 and isinstance(module.site, Linear):
        return f"{site.misfit} is a convolution, whose kernel is in no file of the adapter"
    has = list(spec.shape) if spec else "none"
    return f"an update of shape {list(module.shape)} for {site.misfit}, which has {has}"
