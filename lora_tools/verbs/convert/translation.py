"""Convert an adapter to another format; what that does not support is refused, or dropped."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.errors import LoraToolsError, PolicyError, UnsupportedError, some
from lora_tools.executors import Executor, Serial
from lora_tools.files.address import Address
from lora_tools.formats.base import Format
from lora_tools.formats.features import FEATURES, PARTS, features, features_of, is_blind
from lora_tools.formats.kohya.names import unflattened
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.registry import PEFT, format_named
from lora_tools.matching.naming import Names, names_in
from lora_tools.model import Model
from lora_tools.rewrite import Origin, Source
from lora_tools.rewrite.experts import Grouping
from lora_tools.rewrite.source import Made
from lora_tools.verbs.convert.experts import check_any, regrouped
from lora_tools.verbs.convert.measured import measured
from lora_tools.verbs.convert.naming import renamed

BOUND = (
    "lora_adapter_metadata",
    "lora_tools.names",
    "sshs_",
    "general.",
    "adapter.type",
    "adapter.lora.alpha",
)
"""How fields of a header begin that describe the naming of their own file."""


class Wanted(NamedTuple):
    """What is asked of a translation beside its format, as `translate` has it."""

    drop: tuple[str, ...] = ()
    names: Names | None = None
    experts: Grouping | None = None
    dialects: tuple[tuple[str, str], ...] = ()


def translate(
    adapter: Adapter,
    format: Format,
    executor: Executor | None = None,
    *,
    drop: Collection[str] = (),
    paths: Model | Collection[str] = (),
    names: Names | None = None,
    experts: Grouping | None = None,
    dialects: Mapping[str, str] | None = None,
) -> Source:
    """Convert an adapter to another format.

    Reads no tensor but those of layers that are split or stacked, whose ranks they decide.
    ``drop`` names `FEATURES` to leave out; ``paths`` is the base model, or its modules, by which
    names are given back the dots that kohya took. With ``names``, PEFT's modules are called what
    the base calls them; with ``experts``, those of PEFT are split or stacked as the base, which has
    to be given, has them. ``dialects``: which names the format is to have for the modules of a
    family, where it has several. Raises `UnsupportedError`, with a list, for what the format does
    not support.
    """
    wanted = Wanted(tuple(drop), names, experts, (*(dialects or {}).items(),))
    source = _translated(adapter, format, wanted, paths)
    return measured(source, executor or Serial())


def _again(
    adapter: Adapter,
    format: str,
    wanted: Wanted,
    *paths: Any,
) -> Source:
    """Translate an adapter for the jobs of another process."""
    base = paths[0] if paths and isinstance(paths[0], Model) else paths
    return _translated(adapter, format_named(format), wanted, base)


def _translated(
    adapter: Adapter,
    format: Format,
    wanted: Wanted,
    base: Model | Collection[str],
) -> Source:
    """Return the source before its ranks are measured; reads no tensor."""
    if wanted.experts:
        _check_grouping(adapter, format, base)
    known = (base.address,) if isinstance(base, Model) else tuple(base)
    paths = _paths(base) if isinstance(base, Model) else base
    manifest = unflattened(adapter.manifest, paths) if paths else adapter.manifest
    kept, dropped = _without(manifest, wanted.drop)
    _check(adapter, kept, format)
    same = format.name == adapter.format.name
    try:
        plan, notes = renamed(kept, format, dict(wanted.dialects))
    except LoraToolsError as error:
        raise error.located(adapter.path) from error
    fresh = replace(
        kept,
        modules=tuple(_bare(step.new, new=not same or bool(wanted.dialects)) for step in plan),
        config=kept.config if same else {},
        notes=tuple(dict.fromkeys((*kept.notes, *notes))),
        metadata={k: v for k, v in kept.metadata.items() if same or not k.startswith(BOUND)},
    )
    new, files = fresh, adapter
    if wanted.names and isinstance(base, Model) and format.name == PEFT.name:
        new, files = _as_in_base(replace(adapter, manifest=fresh), base, wanted.names)
    # Those of the file: names and parts of the plan's may be others.
    names = [module.name for module in manifest.modules]
    originals = dict(zip(names, adapter.manifest.modules, strict=True))
    origins: dict[str, Made] = {
        module.name: Origin(tuple(originals[old.name] for old in step.olds), step.rows, step.places)
        for module, step in zip(new.modules, plan, strict=True)
    }
    address = Address(_again, (adapter.address, format.name, wanted, *known))
    if wanted.experts and isinstance(base, Model):
        new, origins = _regrouped(adapter, new, base, wanted.experts)
    return Source(files, format, new, origins, address, dropped)


def _as_in_base(adapter: Adapter, base: Model, naming: Names) -> tuple[Manifest, Adapter]:
    """Return what is written under the base's names, and the adapter with its other tensors so."""
    found, manifest = names_in(base, adapter, naming), adapter.manifest
    new = PEFT.moved(manifest, found.names)
    note = f"{found.changed} names are those that {base.path} has now."
    notes = [note] if found.changed else []
    if found.unmatched:
        notes.append(
            f"{len(found.unmatched)} names are kept, as {base.path} has no such weight by itself:"
            f" {some(found.unmatched)}"
        )
    keys = {old.key: extra.key for old, extra in zip(manifest.extras, new.extras, strict=True)}
    tensors = adapter.tensors.renamed(keys, note)
    return replace(new, notes=(*new.notes, *notes)), replace(adapter, tensors=tensors)


def _check_grouping(adapter: Adapter, format: Format, base: Model | Collection[str]) -> None:
    """Raise an error where experts are not to be split or stacked."""
    same = format.name == adapter.format.name
    if not same or "experts" not in (format.supports or ()):
        raise UnsupportedError(f"{adapter.path}: experts are split and stacked in PEFT's format")
    if not isinstance(base, Model):
        raise PolicyError("experts are split and stacked as a base has them").hint(
            "Give the base model: --base MODEL."
        )


def _regrouped(
    adapter: Adapter, manifest: Manifest, base: Model, experts: Grouping
) -> tuple[Manifest, dict[str, Made]]:
    """Return a manifest with its experts split or stacked, and what its modules are made of."""
    originals = {module.name: module for module in adapter.manifest.modules}
    kept = [originals[module.name] for module in manifest.modules]
    found = regrouped(adapter, kept, base, experts)
    check_any(adapter, found, experts)
    changed = replace(manifest, modules=tuple(each.module for each in found), changed=True)
    return changed, {each.module.name: each.origin for each in found}


def _paths(base: Model) -> list[str]:
    return [key.removesuffix(".weight") for key in base.tensors]


def _without(
    manifest: Manifest, drop: Collection[str]
) -> tuple[Manifest, dict[str, tuple[str, ...]]]:
    """Return a manifest without what is to be dropped, and what that was."""
    if unknown := [feature for feature in drop if feature not in FEATURES]:
        raise PolicyError(f"there is no feature {some(unknown)}").hint(
            f"Features: {', '.join(FEATURES)}."
        )
    modules: list[Module] = []
    for module in manifest.modules:
        gone = {
            PARTS[feature]
            for feature in features_of(module)
            if feature in drop and feature in PARTS
        }
        if any(feature in drop and feature not in PARTS for feature in features_of(module)):
            continue
        parts = {role: part for role, part in module.parts.items() if role not in gone}
        modules.append(replace(module, parts=parts) if gone else module)
    extras = tuple(extra for extra in manifest.extras if extra.kind not in drop)
    found = features(manifest)
    dropped = {feature: tuple(found[feature]) for feature in drop if feature in found}
    if not modules:
        raise UnsupportedError("nothing is left to convert")
    return replace(manifest, modules=tuple(modules), extras=extras), dropped


def _check(adapter: Adapter, manifest: Manifest, format: Format) -> None:
    """Raise `UnsupportedError`, with a list, for what a format does not support."""
    if format.supports is None:
        raise UnsupportedError(f"{format.name} is read, not written")
    if format.name == adapter.format.name:
        return
    adapter.check_order()
    blind = [m.name for m in manifest.modules if not m.is_pair and is_blind(m)]
    if blind:
        raise UnsupportedError(
            f"{adapter.path}: convolutions whose tensors do not say their kernel: {some(blind)}"
        )
    found = features(manifest)
    tensors = {extra.kind for extra in manifest.extras}  # each format names those in its own way
    beyond = [feature for feature in found if feature not in format.supports or feature in tensors]
    if beyond:
        lines = [f"{feature}: {some(found[feature], most=2)}" for feature in beyond]
        drops = " ".join(f"--drop {feature!r}" for feature in beyond)
        error = UnsupportedError(f"{adapter.path}: {format.name} does not support")
        raise error.listing(lines).hint(f"Leave them out: {drops}")


def _bare(module: Module, *, new: bool) -> Module:
    """Return a module as a pair of factors, without the naming of the format it comes from."""
    pair = module.resized(module.r)
    if pair.alpha is None and (new or not module.is_pair):  # LyCORIS reads no file without one
        pair = replace(pair, alpha=float(pair.r))
    return replace(pair, key_prefix=pair.name, owner=pair.name, rows=None) if new else pair
