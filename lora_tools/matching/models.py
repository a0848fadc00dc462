"""Which weights of two models are the same: a fine-tune's of its base, in any dialect of both."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lora_tools.architectures import families
from lora_tools.architectures.detection import Component, Hints, detect
from lora_tools.architectures.index import Candidate, fine_paths, placing, reading
from lora_tools.architectures.layout import Numbers
from lora_tools.architectures.loading import EXPERT, STACKS, kinds_of, loaded, stacks
from lora_tools.architectures.numbers import numbers_of
from lora_tools.base import Base
from lora_tools.errors import FormatError, LoraToolsError, UnsupportedError
from lora_tools.matching.dialects import Translations, translated
from lora_tools.matching.experts import split, stacked
from lora_tools.matching.layers import decided, families_of, sizes
from lora_tools.matching.prefixes import Swap, align, component
from lora_tools.matching.views import View, whole


class Same(NamedTuple):
    """A weight of both models, in the layout of the base."""

    base: View
    tuned: View


@dataclass(frozen=True, slots=True)
class Correspondence:
    """The weights that two models share, and those that only one has."""

    same: tuple[Same, ...]
    base: Mapping[str, View]
    """All that the base has, under the names that transformers has in memory."""
    tuned: Mapping[str, View]
    """What of the tuned model has no weight in the base, by its own names in memory."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Why stored weights of either are in no pair, where more is known than that."""
    notes: tuple[str, ...] = ()


def correspond(base: Base, tuned: Base) -> Correspondence:
    """Find the weights of two models that are the same; names and shapes are all that is read.

    The base's names are those that transformers has in memory: PEFT wraps these. What the tuned
    model has by the same name belongs there. Else the tables of its family say how it is made of
    the tuned model's rows, if both are of one family in different dialects; else names alone,
    behind a prefix per component. Raises `FormatError` if weights fit in several places equally.
    """
    known = [kinds_of(side.model.config) for side in (base, tuned)]
    ours = _in_memory(base, known[0] or known[1])
    theirs = _in_memory(tuned, known[1] or known[0])
    if stacks(known[0] or known[1]):
        ours = stacked(ours)
    theirs = _experts_as(ours, theirs)
    left = {name: view for name, view in theirs.items() if not _fits(ours.get(name), view)}
    if not left:
        return _result(ours, theirs, {}, {}, ())
    made, why, notes = _by_tables(base, tuned, ours)
    rest = {name: view for name, view in left.items() if made.gone.isdisjoint(view.keys)}
    free = [name for name in ours if name in left or name not in theirs]
    prefixes = align(list(rest), free, " ".join(known[0])).check(f"{tuned.path}: fits {base.path}")
    placed: dict[str, View] = {}
    others: dict[str, View] = {}
    for name, view in theirs.items():
        if name not in rest:
            if made.gone.isdisjoint(view.keys):
                placed[name] = view
            continue
        there = prefixes(name)
        if there is None or there not in ours or (there != name and there in theirs):
            others[name] = view
            if reason := prefixes.refused.get(component(name)):
                why[view.key] = reason
        else:
            placed[there] = replace(view, name=there)
    swaps = prefixes.swaps(name for name in rest if name not in others)
    notes += tuple(swap.sentence("The tuned model", "the base") for swap in swaps)
    return _result(ours, placed | made.views, others, why, notes)


def _result(
    ours: Mapping[str, View],
    placed: Mapping[str, View],
    others: Mapping[str, View],
    why: Mapping[str, str],
    notes: tuple[str, ...],
) -> Correspondence:
    same = tuple(Same(view, placed[name]) for name, view in ours.items() if name in placed)
    return Correspondence(same, ours, others, why, notes)


def _in_memory(side: Base, kinds: frozenset[str]) -> dict[str, View]:
    """Return a model's weights by the names that transformers has in memory."""
    found: dict[str, View] = {}
    for key in side:
        name = loaded(key, kinds)
        found[name if name not in found else key] = whole(side, key, name)
    return found


def _experts_as(ours: Mapping[str, View], theirs: Mapping[str, View]) -> dict[str, View]:
    """Return the tuned model's experts as the base has its: in stacks, or one by one."""
    leaves = {match["leaf"] for name in ours if (match := EXPERT.fullmatch(name))}
    if leaves:
        return split(theirs, tuple(leaf for leaf in STACKS if leaf in leaves))
    return stacked(theirs)


def _fits(ours: View | None, view: View) -> bool:
    return ours is not None and ours.spec.shape == view.spec.shape


class _Made(NamedTuple):
    """What tables have made of the tuned model's weights."""

    views: dict[str, View]
    gone: set[str]
    """The stored weights that are in them."""


class _Part(NamedTuple):
    """A component of a model, and its weights by their paths."""

    component: Component
    views: dict[str, View]


def _by_tables(
    base: Base, tuned: Base, ours: Mapping[str, View]
) -> tuple[_Made, dict[str, str], tuple[str, ...]]:
    """Return the base's weights that tables make of components in other dialects."""
    made, why, notes = _Made({}, set()), dict[str, str](), list[str]()
    stated = [side.model.config for side in (base, tuned)]
    hints = next((h for h in map(Hints.of, stated) if h.types), Hints())
    numbers = numbers_of(stated[0] or stated[1])
    there = _parts(ours)
    for own in _parts({key: whole(tuned, key) for key in tuned}):
        answers: list[tuple[_Part, Translations]] = []
        for other in there:
            if _differ(own.component, other.component):
                try:
                    answer = _made_of(own, other, hints, numbers)
                except LoraToolsError as error:
                    why |= {view.key: str(error) for view in own.views.values()}
                else:
                    why |= answer.why
                    answers += [(other, answer)] if answer.views else []
        most = max((len(answer.views) for _, answer in answers), default=0)
        best = [(other, answer) for other, answer in answers if len(answer.views) == most]
        if len(best) > 1:
            places = " and ".join(other.component.prefix or "the top" for other, _ in best)
            raise FormatError(f"{tuned.path}: fits {base.path} in several places: {places}")
        for other, answer in best:
            prefix = other.component.prefix
            views = {prefix + path: view for path, view in answer.views.items()}
            made.views.update({name: replace(view, name=name) for name, view in views.items()})
            keys = {key for view in views.values() for key in view.keys}
            made.gone.update(keys)
            names = families_of(own.component, hints)
            swap = Swap(own.component.prefix, prefix, len(keys), names)
            notes.append(swap.sentence("The tuned model", "the base"))
    return made, {key: r for key, r in why.items() if key not in made.gone}, tuple(notes)


def _made_of(own: _Part, other: _Part, hints: Hints, numbers: Numbers) -> Translations:
    """Return what a component of the base is made of; raises as `decided` does."""
    wanted = {path: view.spec for path, view in other.views.items()}
    dialects = other.component.candidates

    def question(candidate: Candidate) -> Translations:
        answers = [
            translated(own.views, candidate, each.dialect, numbers, wanted)
            for each in dialects
            if each.family is candidate.family
        ]
        most = max(len(answer.views) for answer in answers)
        best, *others = [answer for answer in answers if len(answer.views) == most]
        if any(other.views != best.views for other in others):
            raise UnsupportedError(
                f"the base's names are those of several dialects of {candidate.family.name}, which"
                " lay them out differently"
            )
        return best

    def alike(candidate: Candidate) -> Hashable:
        paths = [*own.component.paths[candidate].values()]
        fine = fine_paths(candidate, paths)
        places = (placing(each, fine) for each in dialects if each.family is candidate.family)
        return reading(candidate, paths), tuple(places)

    shared = {each.family for each in dialects}
    return decided(own.component.among(lambda c: c.family in shared), question, hints, alike)


def _parts(views: Mapping[str, View]) -> list[_Part]:
    """Return the components of a model that families know."""
    specs = {name: view.spec for name, view in views.items()}
    found = [each for each in detect(sizes(specs), families.FAMILIES) if each.candidates]
    return [
        _Part(
            each,
            {
                name.removeprefix(each.prefix): view
                for name, view in views.items()
                if name.startswith(each.prefix)
            },
        )
        for each in found
    ]


def _differ(own: Component, other: Component) -> bool:
    """Whether two components are of one family, and in no dialect that both may have."""
    ours = {candidate.family for candidate in own.candidates}
    theirs = {candidate.family for candidate in other.candidates}
    return bool(ours & theirs) and not {*own.candidates} & {*other.candidates}
