"""Recipes: everything that becomes of a base under adapters, known from headers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.formats.base import Extra
from lora_tools.model import Model
from lora_tools.recipe.entry import Entry, Patch, Source, Tokens
from lora_tools.recipe.place import Placed, Strong, check_homes, place
from lora_tools.recipe.quantised import FLOAT8, check_packed, quantisation, sources
from lora_tools.recipe.tied import Tie, tie_of
from lora_tools.storage.dtypes import DTYPES, FLOATS
from lora_tools.storage.header import Spec


@dataclass(frozen=True, slots=True)
class Options:
    """How to merge. The defaults refuse whatever they cannot do rightly."""

    dtype: str | None = None
    """Element type of the weights written, as safetensors spells it; None: each keeps its own."""
    untie: bool = False
    """Give tied embeddings a head of their own."""
    allow_missing: bool = False
    """Leave out what has no home in the base, and list it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every tensor of the merged model by name, and its configuration."""

    base: Model
    adapters: tuple[Strong, ...]
    entries: Mapping[str, Entry]
    config: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What of the adapters and the base is not in the result, and why."""
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    grown: bool = False
    """Whether the vocabulary has another size than the base's."""


def plan(base: Model, adapters: Sequence[Strong], options: Options | None = None) -> Recipe:
    """Return the recipe of a merge; nothing but headers is read.

    Raises `FormatError` for entries without a home, and `UnsupportedError`, with the reason, for
    what cannot be merged rightly.
    """
    options = options or Options()
    check_packed(base)
    found, scales = sources(base)
    tie = tie_of(base)
    if options.untie and tie is None:
        raise PolicyError(f"{base.path}: its embeddings are not tied, so there is nothing to untie")
    entries = {
        key: Entry(key, found[key].spec, found[key])
        for key in base.tensors.specs
        if key not in scales
    }
    if tie and options.untie:
        entries[tie.head] = replace(entries[tie.embedding], key=tie.head)
    draft = _Draft(base, entries, tie, options)
    for strong in adapters:
        draft.add(strong)
    draft.settle()
    entries = {key: _typed(entry, options.dtype, base) for key, entry in draft.entries.items()}
    touched = [key for key, entry in entries.items() if not entry.plain]
    if not any(entry.patches or entry.tokens or entry.source.adapter for entry in entries.values()):
        draft.notes.append("The adapters change nothing of this base.")
    _check_types(base, [entries[key] for key in touched])
    config, grown = _configured(base, entries, options, dequantised=bool(scales))
    if grown:
        draft.notes.append(
            f"The vocabulary has {grown[1]:,} entries where the base has {grown[0]:,}."
        )
    if scales and options.dtype:
        draft.left_out |= dict.fromkeys(sorted(scales), "its scale is in the weights now")
    elif scales:
        raise UnsupportedError(
            f"{base.path}: a base of scaled float8: {some(sorted(scales), 2)}"
        ).hint("Pass --dtype bfloat16 (or float16, float32) to multiply it out.")
    return Recipe(
        base,
        tuple(adapters),
        entries,
        config,
        draft.left_out,
        tuple(draft.notes),
        grown is not None,
    )


class _Draft:
    """A recipe in the making: adapters are added one after another."""

    def __init__(
        self, base: Model, entries: dict[str, Entry], tie: Tie | None, options: Options
    ) -> None:
        self.base, self.entries, self.tie, self.options = base, entries, tie, options
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, strong: Strong) -> None:
        """Add all that an adapter holds."""
        specs = {key: entry.spec for key, entry in self.entries.items()}
        placed = self._placed(strong, specs)
        self._check_tie(strong, placed)
        if not self.options.allow_missing:
            check_homes(strong.adapter, placed, specs)
        self.left_out |= {
            f"{strong.adapter.path}: {name}": why for name, why in placed.homeless.items()
        }
        for key, extra in placed.replaced.items():
            self._replace(strong, key, extra)
        for key, tokens in placed.tokens.items():
            self._tokens(strong, key, tokens)
        for key, patches in placed.patches.items():
            self._patch(strong, key, patches)

    def _placed(self, strong: Strong, specs: Mapping[str, Spec]) -> Placed:
        try:
            return place(strong, specs, self.base.config)
        except UnsupportedError:
            if not self.options.allow_missing:
                raise
        groups = _without_grouped(strong)
        placed = place(groups, specs, self.base.config)
        kept = {module.name for module in groups.adapter.manifest.modules}
        placed.homeless |= {
            module.name: "a grouped convolution whose update reads other groups' channels"
            for module in strong.adapter.manifest.modules
            if module.name not in kept
        }
        return placed

    def _replace(self, strong: Strong, key: str, extra: Extra) -> None:
        adapter, weight = strong.adapter, strong.weight
        if weight <= 0:
            self.left_out[f"{adapter.path}: {extra.key}"] = (
                f"{extra.kind} replaces what the base has, which --weight {weight:g} cannot undo"
            )
            return
        old = self.entries[key]
        source = Source(adapter.tensors.arrays.places[extra.key], extra.spec, adapter=adapter)
        if old.source.adapter and not _same(old.source, source):
            raise UnsupportedError(
                f"{key}: replaced by {old.source.adapter.path} and by {adapter.path}"
            ).hint("Merge adapters that replace the same tensors one at a time.")
        # What the base's tensor was stored as is what it stays, unless --dtype says otherwise.
        kind = old.spec.dtype if old.spec.dtype in FLOATS else extra.spec.dtype
        self.entries[key] = replace(old, source=source, spec=Spec(kind, extra.spec.shape))

    def _tokens(self, strong: Strong, key: str, tokens: list[Tokens]) -> None:
        if strong.weight <= 0:
            self.left_out |= {
                f"{strong.adapter.path}: {each.extra.key}": (
                    f"trained tokens replace rows, which a weight of {strong.weight:g} cannot undo"
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

    def _patch(self, strong: Strong, key: str, patches: list[Patch]) -> None:
        if strong.weight == 0:
            return
        entry = self.entries[key]
        every = (*entry.patches, *patches)
        if any(patch.dora for patch in every) and entry.patches:
            raise UnsupportedError(
                f"{key}: DoRA normalises its rows, so that nothing else can be added to them"
            ).hint("Merge DoRA adapters one at a time.")
        if strong.weight < 0 and any(patch.dora for patch in patches):
            raise UnsupportedError(
                f"{key}: DoRA cannot be taken out: the norms that its rows had are in no file"
            ).hint("Keep the base.")
        self.entries[key] = replace(entry, patches=every)

    def _check_tie(self, strong: Strong, placed: Placed) -> None:
        """Refuse to change one half of a tied pair; take two equal replacements for one."""
        if self.tie is None or self.options.untie:
            return
        leaf = self.tie.head.removesuffix(".weight")
        heads = [
            name for name in placed.homeless if f".{name}".endswith((f".{leaf}", f".{leaf}.weight"))
        ]
        embedding = placed.replaced.get(self.tie.embedding)
        for name in heads:
            extra = _extra_named(strong, name)
            if extra and embedding and _equal(strong, extra, embedding):
                del placed.homeless[name]
                continue
            raise self._tied(strong, name)
        touched = self.tie.embedding in placed.patches and strong.weight != 0
        head = placed.replaced.get(self.tie.head)
        if embedding and head and not touched and _equal(strong, head, embedding):
            return
        if touched or head or self.tie.head in placed.patches:
            raise self._tied(strong, self.tie.embedding if touched else self.tie.head)
        if embedding and self.tie.head in self.entries:
            placed.replaced[self.tie.head] = embedding  # the file holds a copy of the one tensor

    def _tied(self, strong: Strong, name: str) -> UnsupportedError:
        return UnsupportedError(
            f"{strong.adapter.path}: changes {name} alone, but the base ties {self.tie.embedding}"  # type: ignore[union-attr]
            f" to {self.tie.head}"  # type: ignore[union-attr]
        ).hint("Pass --untie to write both, each with its own update, as the adapter was trained.")

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
        from lora_tools.recipe.tied import EMBEDDINGS, HEADS, is_one_of

        rows = {
            kind: {
                key: entry.spec.shape[0] - entry_of.shape[0]
                for key, entry in self.entries.items()
                if is_one_of(key, names) and (entry_of := self.base.tensors.specs.get(key))
            }
            for kind, names in (("in", EMBEDDINGS), ("out", HEADS))
        }
        grown = any(rows["in"].values())
        return next((key for key, more in rows["out"].items() if grown and not more), None)


def _without_grouped(strong: Strong) -> Strong:
    """Return the adapter without the convolutions that have groups."""
    manifest = strong.adapter.manifest
    modules = tuple(module for module in manifest.modules if module.groups == 1)
    return replace(
        strong, adapter=replace(strong.adapter, manifest=replace(manifest, modules=modules))
    )


def _extra_named(strong: Strong, name: str) -> Extra | None:
    return next((e for e in strong.adapter.manifest.extras if (e.name or e.key) == name), None)


def _equal(strong: Strong, one: Extra, other: Extra) -> bool:
    import numpy as np

    if one.spec != other.spec:
        return False
    from lora_tools.recipe.factors import wide

    x, y = (wide(strong.adapter.tensors.arrays[extra.key]) for extra in (one, other))
    return bool(np.array_equal(x, y))


def _same(one: Source, other: Source) -> bool:
    import numpy as np

    from lora_tools.recipe.factors import wide

    if one.adapter is None or other.adapter is None or one.spec != other.spec:
        return False
    return bool(np.array_equal(wide(_array(one)), wide(_array(other))))


def _array(source: Source) -> Any:
    from lora_tools.storage.checkpoint import Place, read_array

    return read_array(source.values) if isinstance(source.values, Place) else source.values


def _typed(entry: Entry, dtype: str | None, base: Model) -> Entry:
    """Give an entry the element type that was asked for, where it has the base's general one."""
    if dtype is None:
        return entry
    general = _general(base)
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


def _check_types(base: Model, touched: list[Entry]) -> None:
    bad = [
        f"{entry.key} ({entry.source.spec.dtype} to {entry.spec.dtype})"
        for entry in touched
        if entry.spec.dtype not in FLOATS
        or (entry.source.spec.dtype not in FLOATS and entry.source.spec.dtype not in FLOAT8)
    ]
    if bad:
        raise UnsupportedError(f"{base.path}: cannot be rounded to their type: {some(bad)}").hint(
            "Pass --dtype bfloat16 (or float16, float32) to write a type that can."
        )


def _configured(
    base: Model, entries: Mapping[str, Entry], options: Options, *, dequantised: bool
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the configuration that fits the entries, and the old and new size of a vocabulary."""
    from lora_tools.recipe.tied import EMBEDDINGS, is_one_of

    config: dict[str, Any] = json.loads(json.dumps(dict(base.config)))
    sections = [config, *(v for k, v in config.items() if k == "text_config" and v)]
    grown = None
    for key, entry in entries.items():
        old = base.tensors.specs.get(key)
        if old and is_one_of(key, EMBEDDINGS) and old.shape[0] != entry.spec.shape[0]:
            grown = (old.shape[0], entry.spec.shape[0])
    for section in sections:
        if grown and "vocab_size" in section:
            section["vocab_size"] = grown[1]
        if options.untie and (section is config or "tie_word_embeddings" in section):
            section["tie_word_embeddings"] = False
        if options.dtype and (name := DTYPES[options.dtype].torch):
            section |= {key: name for key in ("dtype", "torch_dtype") if key in section}
    if dequantised and quantisation(config):
        del config["quantization_config"]
    return config, grown
