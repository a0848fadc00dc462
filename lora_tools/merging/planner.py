"""Planner: a merge plan in the making, to which adapters are added one after another."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_tools.architectures.conventions import HEADS, TOKENS, ends
from lora_tools.base import plain
from lora_tools.errors import UnsupportedError
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.place import Place, read_array
from lora_tools.formats.manifest import Extra
from lora_tools.matching import Swap
from lora_tools.matching.ties import TiedWeights
from lora_tools.merging.factors import wide
from lora_tools.merging.matched import MatchedUpdates, WeightedAdapter, check_matched, match_updates
from lora_tools.merging.tensor_plan import BaseValues, Patch, TensorPlan, Tokens
from lora_tools.model import Model


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge. The defaults refuse whatever they cannot do rightly."""

    dtype: str | None = None
    """dtype of the weights written, as safetensors names it; None: each keeps its own."""
    untie: bool = False
    """Give tied embeddings a head of their own."""
    allow_missing: bool = False
    """Leave out what is unmatched in the base, and list it."""


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
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []
        self.partial: list[str] = []
        self.swaps: dict[str, tuple[Swap, ...]] = {}

    def add(self, weighted: WeightedAdapter) -> None:
        """Add all that an adapter holds."""
        specs = {key: entry.spec for key, entry in self.entries.items()}
        matched = match_updates(weighted, specs, self.base.config)
        self._check_tie(weighted, matched)
        self.notes += [s.sentence(str(weighted.adapter.path), "the base") for s in matched.swaps]
        self.swaps |= {str(weighted.adapter.path): matched.swaps}
        if not self.options.allow_missing:
            check_matched(weighted.adapter, matched, specs)
        if missing := len(matched.unmatched):
            manifest = weighted.adapter.manifest
            whole = len(manifest.modules) + len(manifest.extras)
            self.partial.append(
                f"{weighted.adapter.path}: {whole - missing:,} of {whole:,} modules and other"
                f" tensors are merged; {missing:,} match nothing in the base and are left out."
            )
        self.left_out |= {
            f"{weighted.adapter.path}: {name}": why for name, why in matched.unmatched.items()
        }
        for key, extra in matched.replaced.items():
            self._replace(weighted, key, extra)
        for key, tokens in matched.tokens.items():
            self._tokens(weighted, key, tokens)
        for key, patches in matched.patches.items():
            self._patch(weighted, key, patches)

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
        if old.source.adapter and not _same(old.source, source):
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
        # Readers of a tied model take both from one tensor; a copy of it would go stale.
        keys = [key]
        if self.tie and key == self.tie.embedding and self.tie.head in self.entries:
            keys.append(self.tie.head)
        for name in keys:
            entry = self.entries[name]
            if entry.tokens:
                raise UnsupportedError(f"{name}: rows are replaced by two adapters").hint(
                    "Merge adapters that train tokens one at a time."
                )
            self.entries[name] = replace(entry, tokens=tuple(tokens))

    def _patch(self, weighted: WeightedAdapter, key: str, patches: list[Patch]) -> None:
        if weighted.weight == 0:
            return
        entry = self.entries[key]
        every = (*entry.patches, *patches)
        if any(patch.dora for patch in every) and entry.patches:
            raise UnsupportedError(
                f"{key}: DoRA normalises its rows, so that nothing else can be added to them"
            ).hint("Merge DoRA adapters one at a time.")
        if weighted.weight < 0 and any(patch.dora for patch in patches):
            raise UnsupportedError(
                f"{key}: DoRA cannot be taken out: the norms that its rows had are in no file"
            ).hint("Keep the base.")
        self.entries[key] = replace(entry, patches=every)

    def _check_tie(self, weighted: WeightedAdapter, matched: MatchedUpdates) -> None:
        """Refuse to change one half of a tied pair; take two equal replacements for one."""
        tie = self.tie
        if tie is None or self.options.untie:
            return
        leaf = tie.head.removesuffix(".weight")
        heads = [
            name
            for name in matched.unmatched
            if f".{name}".endswith((f".{leaf}", f".{leaf}.weight"))
        ]
        embedding = matched.replaced.get(tie.embedding)
        for name in heads:
            extra = _extra_named(weighted, name)
            if extra and embedding and _equal(weighted, extra, embedding):
                del matched.unmatched[name]
                continue
            raise _tied(weighted, tie, name)
        touched = tie.embedding in matched.patches and weighted.weight != 0
        head = matched.replaced.get(tie.head)
        if embedding and head and not touched and _equal(weighted, head, embedding):
            return
        if touched or head or tie.head in matched.patches:
            raise _tied(weighted, tie, tie.embedding if touched else tie.head)
        if embedding and tie.head in self.entries:
            matched.replaced[tie.head] = embedding  # the file holds a copy of the one tensor

    def settle(self) -> None:
        """Check what only all adapters together can show."""
        if not self.tie and (head := self._stale_head()):
            raise UnsupportedError(
                f"{self.base.path}: the embeddings have another number of rows than {head}"
            ).hint("The adapter has to hold both.")
        for key, entry in self.entries.items():
            table = [patch for patch in entry.patches if patch.stop > entry.table[0]]
            if table:
                raise UnsupportedError(f"{key}: {table[0].module.name} reaches beyond its rows")

    def _stale_head(self) -> str | None:
        rows = {
            kind: {
                key: sum(entry.spec.shape[:1]) - sum(entry_of.shape[:1])
                for key, entry in self.entries.items()
                if ends(key, names) and (entry_of := self.base.tensors.specs.get(key))
            }
            for kind, names in (("in", TOKENS), ("out", HEADS))
        }
        grown = any(rows["in"].values())
        return next((key for key, more in rows["out"].items() if grown and not more), None)


def _extra_named(weighted: WeightedAdapter, name: str) -> Extra | None:
    return next((e for e in weighted.adapter.manifest.extras if (e.name or e.key) == name), None)


def _equal(weighted: WeightedAdapter, one: Extra, other: Extra) -> bool:
    if one.spec != other.spec:
        return False
    x, y = (wide(weighted.adapter.tensors.arrays[extra.key]) for extra in (one, other))
    return bool(np.array_equal(x, y))


def _same(one: BaseValues, other: BaseValues) -> bool:
    if one.adapter is None or other.adapter is None or one.spec != other.spec:
        return False
    return bool(np.array_equal(wide(_array(one)), wide(_array(other))))


def _array(source: BaseValues) -> Any:
    return read_array(source.values) if isinstance(source.values, Place) else source.values


def _tied(weighted: WeightedAdapter, tie: TiedWeights, name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{weighted.adapter.path}: changes {name} alone, but the base ties {tie.embedding} to"
        f" {tie.head}"
    ).hint("Pass --untie to write both, each with its own update, as the adapter was trained.")
