"""What a target calls the modules of a source, and which of them are split or fused there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lora_tools.architectures.detection import Component, Hints, detect
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.numbers import numbers_of
from lora_tools.architectures.pipelines import encoder_behind, is_known, split
from lora_tools.architectures.translation import RowMove, Translated, translate
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.dtypes import widest
from lora_tools.files.header import Spec
from lora_tools.formats.base import Format, Names
from lora_tools.formats.features import PARTS, features_of
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.kohya.header import BASES
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.sites import Linear
from lora_tools.linalg.blocks import Rows

BY_ROW = ("DoRA", "bias")
"""Kinds that a layer has by row, so that each part of it has its own."""
ROLES = tuple(PARTS[feature] for feature in BY_ROW)

PIPELINES = ("comfyui", "diffusers", "xlabs")
"""Formats in which every module is one of a pipeline's component."""

CONTAINERS: Mapping[Names, str] = {
    "original": "comfyui",
    "trainers": "kohya",
    "diffusers": "diffusers",
}
"""What a family calls the files in which modules have these names."""


class Step(NamedTuple):
    """A module of the target, and the modules of the source that it is made of."""

    new: Module
    olds: tuple[Module, ...]
    rows: tuple[Rows | None, ...] = (None,)
    """The rows of each one's B that the target has; None: all, as they are."""
    places: tuple[Rows, ...] = ()
    """The target's rows that they are, where those of one module are not all of them in order."""


class Naming(NamedTuple):
    """Every module of the target, and what a person should know of how it was named."""

    steps: list[Step]
    notes: tuple[str, ...] = ()


def renamed(manifest: Manifest, format: Format, dialects: Mapping[str, str]) -> Naming:
    """Return the modules under the names that the format gives them.

    ``dialects``: those to write of families that the format has in several, by their names.

    Formats with a configuration beside the tensors hold one model: its component goes. Raises
    `UnsupportedError` for adapters of several models there, and for names that families share
    which the target lays out differently.
    """
    if manifest.format == format.name and not dialects:
        return Naming([Step(module, (module,)) for module in manifest.modules])
    found, notes = _translated(manifest, format, dialects)
    counts = Counter(step.new.name for step in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UnsupportedError(
            f"{format.name} has one name for modules of several models: {some(twice)}"
        ).hint("Convert the part of each model by itself.")
    parts = [split(step.new.name) for step in found]
    components = {component for component, _ in parts}
    if not format.config_file or components == {""}:
        return Naming(found, notes)
    if manifest.format not in PIPELINES and not all(is_known(path) for _, path in parts):
        return Naming(found, notes)  # a model of its own may begin its paths with such a word
    if len(components) > 1:
        raise UnsupportedError(
            f"{format.name} holds one model, the adapter {', '.join(sorted(components))}"
        )
    bare = [s._replace(new=replace(s.new, name=split(s.new.name)[1])) for s in found]
    return Naming(bare, notes)


def nameless(sizes: Mapping[str, Dimensions], format: Format) -> list[str]:
    """Return the modules that no adapter of this format can name: an autoencoder's, say.

    They are of known models that have no place in a pipeline's adapters.
    """
    if format.names not in CONTAINERS:
        return []
    return [
        name
        for component in detect(sizes)
        if component.candidates
        and not encoder_behind(component)
        and not any(each.family.before(each.family.hub) for each in component.candidates)
        for name in (*component.names, *component.unmatched)
    ]


def _translated(manifest: Manifest, format: Format, dialects: Mapping[str, str]) -> Naming:
    modules = {module.name: module for module in manifest.modules}
    container = CONTAINERS.get(format.names)
    if container is None:
        return Naming([Step(module, (module,)) for module in manifest.modules])
    sizes = {name: Dimensions(module.out, module.inp) for name, module in modules.items()}
    named = [_component(each, manifest, modules, container, dialects) for each in detect(sizes)]
    found = [step for each in named for step in each.steps]
    order = {name: number for number, name in enumerate(modules)}
    assert {old.name for step in found for old in step.olds} == order.keys(), "modules are lost"
    # In the order of the file, and fused layers behind the others, as their parts may lie apart.
    found.sort(key=lambda step: (bool(step.places), min(order[old.name] for old in step.olds)))
    return Naming(found, tuple(note for each in named for note in each.notes))


def _component(
    component: Component,
    manifest: Manifest,
    modules: Mapping[str, Module],
    container: str,
    dialects: Mapping[str, str],
) -> Naming:
    """Return the steps of the modules behind one prefix, as the container has their family."""
    every = (*component.names, *component.unmatched)
    if folder := encoder_behind(component):
        return _encoder(component, folder, modules)
    component = component.among(lambda candidate: container in candidate.family.containers)
    if any(candidate.family.name in dialects for candidate in component.candidates):
        component = component.among(lambda candidate: candidate.family.name in dialects)
    if not component.candidates:  # a text encoder, or a model that no table has
        return Naming([Step(modules[name], (modules[name],)) for name in every])
    numbers = numbers_of(manifest.base)
    stated = (manifest.metadata.get(field) for field in BASES)
    hints = Hints.of(manifest.base, manifest.base_model, *stated)

    def question(candidate: Candidate) -> tuple[str, tuple[Translated, ...], tuple[str, ...]]:
        family, paths = candidate.family, component.paths[candidate]
        names = {path: name for name, path in paths.items()}
        sizes = {
            path: Dimensions(modules[name].out, modules[name].inp) for path, name in names.items()
        }
        dialect = dialects.get(family.name) or family.dialect(container, candidate.dialect)
        found = translate(sizes, candidate, dialect, numbers)
        own = family.containers[container]
        before = own.prefix if container == "comfyui" else family.before(dialect)
        targets = tuple(target.renamed(names) for target in found.targets)
        return before, targets, tuple(names[path] for path in found.unmatched)

    (before, targets, unmatched), guess = component.decision(question, hints)
    strange = (*component.unmatched, *unmatched)
    moved = any(f"{before}{target.path}" != target.source for target in targets)
    if strange and moved:
        raise UnsupportedError(
            f"{some(strange)}: {component.candidates[0].family.name}, whose names the others are,"
            " has no such module of this shape"
        )
    known = [_step(f"{before}{target.path}", target, modules) for target in targets]
    others = [Step(modules[name], (modules[name],)) for name in strange]
    return Naming([*known, *others], (guess,) if guess else ())


def _encoder(component: Component, folder: str, modules: Mapping[str, Module]) -> Naming:
    """Return the steps of a text encoder, which formats have in the names of its hub."""
    candidate = component.candidates[0]
    names = {path: name for name, path in component.paths[candidate].items()}
    sizes = {path: Dimensions(modules[name].out, modules[name].inp) for path, name in names.items()}
    found = translate(sizes, candidate, candidate.family.hub, {})
    targets = [target.renamed(names) for target in found.targets]
    others = [names[path] for path in found.unmatched] + [*component.unmatched]
    steps = [_step(f"{folder}.{target.path}", target, modules) for target in targets]
    return Naming([*steps, *(Step(modules[name], (modules[name],)) for name in others)])


def _step(name: str, target: Translated, modules: Mapping[str, Module]) -> Step:
    if target.source is not None:
        module = modules[target.source]
        return Step(replace(module, name=name), (module,))
    if len(target.pieces) == 1 and target.is_whole:
        return _part(modules[target.pieces[0].module], name, target.pieces[0], target.size.out)
    return _fused(name, target, modules)


def _part(module: Module, name: str, piece: RowMove, out: int) -> Step:
    _check(module, "split", BY_ROW)
    # As a pair of factors: what it is made of cannot be shared out.
    pair = module.resized(module.r)
    parts = {
        role: part._replace(spec=Spec(part.spec.dtype, (out,))) if role in ROLES else part
        for role, part in pair.parts.items()
    }
    new = replace(pair, name=name, out=out, parts=parts)
    if piece.at == (range(out),):
        return Step(new, (module,), (piece.rows,))
    return Step(new, (module,), (piece.rows,), (piece.at,))


def _fused(name: str, target: Translated, modules: Mapping[str, Module]) -> Step:
    """Return the step to a fused layer, whose parts the adapter need not all have."""
    olds = tuple(modules[piece.module] for piece in target.pieces)
    for module in olds:
        _check(module, "fused", BY_ROW[:1])
    rank = sum(module.rank for module in olds)
    out, inp, _ = target.size
    bare = Module(name, Linear(), out, inp, rank, None, False, {}, name, name)
    b, a = factor_shapes(bare)
    dtype = widest({part.spec.dtype for old in olds for part in old.resized(old.r).parts.values()})
    parts: dict[Role, Part] = {
        "b": Part(f"{name}.b", Spec(dtype, b)),
        "a": Part(f"{name}.a", Spec(dtype, a)),
    }
    norms = [old.parts["magnitude"] for old in olds if "magnitude" in old.parts]
    count = len(target.layout.parts)
    if norms and not (target.is_whole and len(norms) == len(olds)):
        raise UnsupportedError(
            f"{target.path}: DoRA of {len(norms)} of the {count} layers that are fused there, whose"
            " other rows need norms, too"
        ).hint("Leave them out: --drop DoRA")
    if norms:
        code = widest({part.spec.dtype for part in norms})
        parts["magnitude"] = Part(f"{name}.magnitude", Spec(code, (out,)))
    rows = tuple(
        None if piece.rows == (range(old.out),) else piece.rows
        for piece, old in zip(target.pieces, olds, strict=True)
    )
    places = tuple(piece.at for piece in target.pieces)
    return Step(replace(bare, parts=parts), olds, rows, places)


def _check(module: Module, what: str, shared: Sequence[str]) -> None:
    """Raise `UnsupportedError` for what layers can share out or join no more than ``shared``."""
    if beyond := [feature for feature in features_of(module) if feature not in shared]:
        raise UnsupportedError(
            f"{module.name}: {', '.join(beyond)} of a layer that is {what}"
        ).hint(f"Leave them out: {' '.join(f'--drop {feature!r}' for feature in beyond)}")
