"""What the weights of a model are, as its family's table says."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

from lora_tools.architectures import families
from lora_tools.architectures.conventions import PACKED_PARAMETER
from lora_tools.architectures.detection import Component, Hints, detect, known
from lora_tools.architectures.index import Candidate, fine_paths, reading, template
from lora_tools.architectures.layout import Dimensions, Role
from lora_tools.errors import LoraToolsError
from lora_tools.files.header import Spec

T = TypeVar("T")
WEIGHT = ".weight"


class Layer(NamedTuple):
    """What a module is, and whether its matrix is stored as (in, out)."""

    role: Role
    transposed: bool


def module_of(key: str) -> str:
    """Return the module that a weight is of.

    >>> module_of("attn.in_proj_weight"), module_of("norm.bias")
    ('attn', 'norm.bias')
    """
    return key.removesuffix(WEIGHT).removesuffix(PACKED_PARAMETER)


def sizes(specs: Mapping[str, Spec]) -> dict[str, Dimensions | None]:
    """Return the modules of a model and, of matrices, their sizes as they are stored."""
    return {
        module_of(key): Dimensions(*spec.shape) if len(spec.shape) == 2 else None
        for key, spec in specs.items()
    }


def decided(
    component: Component,
    question: Callable[[Candidate], T],
    hints: Hints,
    alike: Callable[[Candidate], Hashable],
) -> T:
    """Return what a component's candidates answer; raises as `decide` does.

    The ``model_type`` of a configuration is its family's own word: others are not asked. Of those
    that are ``alike`` one is asked, as a question costs a look at every module.
    """
    known: dict[Hashable, T | LoraToolsError] = {}

    def once(candidate: Candidate) -> T:
        key = alike(candidate)
        if key not in known:
            try:
                known[key] = question(candidate)
            except LoraToolsError as error:
                known[key] = error
        answer = known[key]
        if isinstance(answer, LoraToolsError):
            raise answer
        return answer

    return _typed(component, hints).decide(once, hints)


def families_of(component: Component, hints: Hints) -> str:
    """Return the names of the families that a component may be of."""
    candidates = _typed(component, hints).candidates
    return " or ".join(dict.fromkeys(candidate.family.name for candidate in candidates))


def _typed(component: Component, hints: Hints) -> Component:
    typed = [c for c in component.candidates if not {*hints.types}.isdisjoint(c.family.types)]
    return component.among(lambda candidate: candidate in typed) if typed else component


def layers(specs: Mapping[str, Spec], hints: Hints) -> dict[str, Layer]:
    """Return what the modules are of which a table has the name; others are missing."""
    modules, found = sizes(specs), dict[str, Layer]()
    for component in detect(modules, families.FAMILIES):
        if not component.candidates:
            continue

        def question(candidate: Candidate, component: Component = component) -> dict[str, Layer]:
            return {
                name: layer
                for name, path in component.paths[candidate].items()
                if (layer := _layer(path, modules[name], candidate, hints))
            }

        def alike(candidate: Candidate, component: Component = component) -> Hashable:
            paths = component.paths[candidate].values()
            fine = fine_paths(candidate, paths)
            return reading(candidate, paths), tuple(map(candidate.family.role, fine))

        try:
            found |= decided(component, question, hints, alike)
        except LoraToolsError:  # families that differ, so that names have to do
            continue
    return found


def _layer(path: str, size: Dimensions | None, candidate: Candidate, hints: Hints) -> Layer | None:
    match = known(path, size, candidate)
    if match is None:
        return None
    layout, family = match.layout, candidate.family
    fine, _ = template(layout.parts[0].path)
    # Models of other types may share the names, and not that their layers are stored as (in, out).
    transposed = layout.transposed and (
        not hints.types or not {*hints.types}.isdisjoint(family.types)
    )
    return Layer(layout.role or family.role(fine), transposed)
