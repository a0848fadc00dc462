"""Planner: a merge plan in the making, to which adapters are added one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_tools.architectures.conventions import HEADS, TOKENS, ends
from lora_tools.base import plain
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra
from lora_tools.matching import Swap
from lora_tools.matching.ties import TiedWeights
from lora_tools.merging.matched import WeightedAdapter, check_matched, match_updates
from lora_tools.merging.tensor_plan import BaseValues, Patch, TensorPlan, Tokens
from lora_tools.merging.tied import follow, same_values, settled
from lora_tools.model import Model
from lora_tools.selection import Selection

BESIDE = "non_lora_trainables.bin"
"""Where LLaVA's own trainer saves what it trained in full."""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge. The defaults refuse whatever they cannot do rightly."""

    dtype: str | None = None
    """dtype of the weights written, as safetensors names it; None: each keeps its own."""
    untie: bool = False
    """Give tied embeddings a head of their own, even where both are still one."""
    allow_missing: bool = False
    """Leave out what is unmatched in the base, and list it."""
    selection: Selection = field(default_factory=Selection)
    """Which modules are merged, and what their updates are multiplied by."""


class Planner:
    """A merge plan in the making: adapters are added one after another."""

    def __init__(
        self,
        base: Model,
        entries: dict[str, TensorPlan],
        tie: TiedWeights | None,
        options: MergeOptions,
    ) -> None:
        self.base, self.entries, self.tie, self.options = base, entries, tie, options
        self.before = {key: entry.spec for key, entry in entries.items()}
        self.untied = False
        self.left_out: dict[str, str] = {}
        self.notes = [f"{base.path}: {note}" for note in base.tensors.notes]
        self.partial: list[str] = []
        self.swaps: dict[str, tuple[Swap, ...]] = {}

    def add(self, weighted: WeightedAdapter, number: int) -> None:
        """Add what is selected of an adapter, the one with this number."""
        weighted, factors = _selected(weighted, number, self.options.selection)
        specs = {key: entry.spec for key, entry in self.entries.items()}
        matched = match_updates(weighted, specs, self.base.config, factors)
        if self.tie:
            follow(weighted, matched, self.tie)
        self.notes += [s.sentence(str(weighted.adapter.path), "the base") for s in matched.swaps]
        self.swaps |= {str(weighted.adapter.path): matched.swaps}
        if not self.options.allow_missing:
            check_matched(weighted.adapter, matched, specs)
        if missing := len(matched.unmatched):
            manifest = weighted.adapter.manifest
            whole = len(manifest.modules) + len(manifest.extras) - len(matched.copies)
            self.partial.append(
                f"{weighted.adapter.path}: {whole - missing:,} of {whole:,} modules and other"
                f" tensors are merged; {missing:,} match nothing in the base and are left out."
            )
        self.left_out |= {
            f"{weighted.adapter.path}: {name}": why
            for name, why in (matched.unmatched | matched.copies).items()
        }
        if BESIDE in weighted.adapter.side_files().left_out:
            self.left_out[f"{weighted.adapter.path}: {BESIDE}"] = (
                "what LLaVA trained beside the adapter, such as the projector: a pickle under names"
                " of its own, which no part of the base has"
            )
        for key, extra in matched.replaced.items():
            self._replace(weighted, key, extra)
        for key, tokens in matched.tokens.items():
            self._tokens(weighted, key, tokens)
        for key, patches in matched.patches.items():
            self._patch(key, patches)

    def _replace(self, weighted: WeightedAdapter, key: str, extra: Extra) -> None:
        adapter, weight = weighted.adapter, weighted.weight
        if weight <= 0:
            self.left_out[f"{adapter.path}: {extra.key}"] = (
                f"{extra.kind} replaces what the base has, which --weight {weight:g} cannot undo"
            )
            return
        old = self.entries[key]
        values = adapter.tensors.arrays.places[extra.key]
        source = BaseValues(plain(extra.key, extra.spec, values), adapter)
        if old.source.adapter and not same_values(old.source, source):
            raise UnsupportedError(
                f"{key}: replaced by {old.source.adapter.path} and by {adapter.path}"
            ).hint("Merge adapters that replace the same tensors one at a time.")
        # What the base's tensor was stored as is what it stays, unless --dtype says otherwise.
        kind = old.spec.dtype if old.spec.dtype in FLOATS else extra.spec.dtype
        self.entries[key] = replace(old, source=source, spec=Spec(kind, extra.spec.shape))

    def _tokens(self, weighted: WeightedAdapter, key: str, tokens: list[Tokens]) -> None:
        if weighted.weight <= 0:
            self.left_out |= {
                f"{weighted.adapter.path}: {each.extra.key}": (
                    "trained tokens replace rows, which a weight of"
                    f" {weighted.weight:g} cannot undo"
                )
                for each in tokens
            }
            return
        entry = self.entries[key]
        before = {row: each.adapter.path for each in entry.tokens for row in each.rows}
        twice = [row for each in tokens for row in each.rows if row in before]
        if twice:
            raise UnsupportedError(
                f"{key}: rows {some(twice)} are replaced by {before[twice[0]]} and by"
                f" {weighted.adapter.path}"
            ).hint("Merge adapters that train the same tokens one at a time.")
        self.entries[key] = replace(entry, tokens=(*entry.tokens, *tokens))

    def _patch(self, key: str, patches: Sequence[Patch]) -> None:
        patches = [patch for patch in patches if patch.weight]
        if not patches:
            return
        entry = self.entries[key]
        every = (*entry.patches, *patches)
        if any(patch.dora for patch in every) and entry.patches:
            raise UnsupportedError(
                f"{key}: DoRA normalises its rows, so that nothing else can be added to them"
            ).hint("Merge DoRA adapters one at a time.")
        if any(patch.dora and patch.weight < 0 for patch in patches):
            raise UnsupportedError(
                f"{key}: DoRA cannot be taken out: the norms that its rows had are in no file"
            ).hint("Keep the base.")
        self.entries[key] = replace(entry, patches=every)

    def settle(self) -> None:
        """Check what only all adapters together can show."""
        if head := self._stale_head():
            raise UnsupportedError(
                f"{self.base.path}: the embeddings have another number of rows than {head}"
            ).hint("The adapter has to hold both.")
        if self.tie:
            self.entries, note = settled(
                self.base, self.entries, self.tie, untie=self.options.untie
            )
            self.untied = self.tie.head in self.entries and (self.options.untie or note is not None)
            self.notes += [note] if note else []
        for key, entry in self.entries.items():
            table = [patch for patch in entry.patches if patch.stop > entry.table[0]]
            if table:
                raise UnsupportedError(f"{key}: {table[0].module.name} reaches beyond its rows")

    def _stale_head(self) -> str | None:
        rows = {
            kind: {
                key: sum(entry.spec.shape[:1]) - sum(entry_of.shape[:1])
                for key, entry in self.entries.items()
                if ends(key, names) and (entry_of := self.before.get(key))
            }
            for kind, names in (("in", TOKENS), ("out", HEADS))
        }
        grown = any(rows["in"].values())
        return next((key for key, more in rows["out"].items() if grown and not more), None)


def _selected(
    weighted: WeightedAdapter, number: int, selection: Selection
) -> tuple[WeightedAdapter, Mapping[str, float]]:
    """Return an adapter with what is left of it, and what its updates are multiplied by."""
    manifest = weighted.adapter.manifest
    factors = selection.of(manifest.modules, number)
    modules = tuple(module for module in manifest.modules if factors[module.name])
    extras = tuple(extra for extra in manifest.extras if selection.keeps(extra))
    left = replace(manifest, modules=modules, extras=extras)
    return replace(weighted, adapter=replace(weighted.adapter, manifest=left)), factors
