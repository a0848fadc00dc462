"""Which tensor of the tuned model is which of the base, or why they do not fit together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from lora_tools.architectures.conventions import EMBEDDINGS, ROUTERS
from lora_tools.architectures.detection import Hints
from lora_tools.base import Base
from lora_tools.errors import FormatError, some
from lora_tools.files.header import Spec
from lora_tools.matching.layers import Layer, layers, module_of
from lora_tools.matching.models import Correspondence, correspond
from lora_tools.matching.prefixes import component
from lora_tools.matching.views import View
from lora_tools.names import NUMBER
from lora_tools.verbs.extract.sites import HEADS, WEIGHT, Matrices, Place, by_token, place

ROUTED = re.compile(r"(.*)\.experts\b")
"""A layer that has experts, beside which its router is."""
Side: TypeAlias = Literal["base", "tuned"]


class WeightPair(NamedTuple):
    """A weight on both sides."""

    name: str
    """As PEFT meets it in the base; an output layer that only the tuned model has keeps its own."""
    base: View
    tuned: View
    """In the layout of the base."""
    place: Matrices | None
    """None: no LoRA can hold its update."""
    why: str = ""
    """Why none can."""

    @property
    def spec(self) -> Spec:
        """Of the base's tensor."""
        return self.base.spec

    @property
    def tuned_spec(self) -> Spec:
        """Of the tuned one."""
        return self.tuned.spec

    @property
    def grown(self) -> bool:
        """Whether a vocabulary has other sizes on the two sides."""
        return self.spec.shape != self.tuned_spec.shape

    @property
    def nbytes(self) -> int:
        """What both sides of it weigh on disk."""
        return self.spec.nbytes + self.tuned_spec.nbytes


class Unmatched(NamedTuple):
    """A tensor of one model that is compared with none of the other."""

    name: str
    side: Side
    spec: Spec
    reason: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Everything that both models hold, and what only one does."""

    both: tuple[WeightPair, ...]
    unmatched: tuple[Unmatched, ...] = ()
    """What of either is compared with nothing, and why."""
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """All of the base's tensors, as PEFT meets them."""


def match(base: Base, tuned: Base) -> Pairs:
    """Pair the tensors of two models, whatever dialects of one family they have.

    Raises `FormatError` if the models are of different architectures or shapes.
    """
    found = correspond(base, tuned)
    if not found.same:
        raise FormatError(
            f"{tuned.path} and {base.path} are of different architectures: their tensors share no"
            " name"
        ).hint(f"Tuned: {some(list(tuned), 3)}. Base: {some(list(base), 3)}.")
    sides = (base.model, tuned.model)
    notes = [f"{side.path}: {note}" for side in sides for note in side.tensors.notes]
    notes += found.notes
    links = [(view.name, view, other) for view, other in found.same]
    links += _tied(base, tuned, found, notes)
    specs = {name: view.spec for name, view in found.base.items()}
    kind = base.model.fields.mapping("text_config").text("model_type")
    kind = kind or base.model.fields.text("model_type") or ""
    tables = layers(specs, Hints.of(base.model.config))
    routed = {experts[1] for name in found.base if (experts := ROUTED.match(name))}
    both = [_pair(base, tuned, tables, kind, routed, *link) for link in links]
    odd = [pair for pair in both if pair.grown and not _is_vocabulary(pair)]
    _check_shapes(base, tuned, both, odd)
    reason = "has the shape {}, the {}'s {}"
    why = [dict(found.why), dict(found.why)]
    for pair in odd:
        ours, theirs = list(pair.spec.shape), list(pair.tuned_spec.shape)
        why[0] |= dict.fromkeys(pair.base.keys, reason.format(ours, "tuned model", theirs))
        why[1] |= dict.fromkeys(pair.tuned.keys, reason.format(theirs, "base", ours))
    both = [pair for pair in both if pair not in odd]
    only_base = _rest(base, "base", {key for pair in both for key in pair.base.keys}, why[0])
    _check_overlap(base, tuned, both, only_base)
    paired = {key for pair in both for key in pair.tuned.keys}
    unmatched = (*only_base, *_rest(tuned, "tuned", paired, why[1]))
    return Pairs(tuple(both), unmatched, tuple(notes), tuple(found.base))


def _rest(
    model: Base, side: Side, paired: set[str], why: Mapping[str, str]
) -> tuple[Unmatched, ...]:
    otherwise = f"not in the {'tuned model' if side == 'base' else 'base'}"
    return tuple(
        Unmatched(key, side, spec, why.get(key, otherwise))
        for key, spec in model.specs.items()
        if key not in paired
    )


def _pair(
    base: Base,
    tuned: Base,
    known: Mapping[str, Layer],
    kind: str,
    routed: set[str],
    name: str,
    ours: View,
    theirs: View,
) -> WeightPair:
    numbers = all(w.is_numbers for w in (*ours.weights(base), *theirs.weights(tuned)))
    module = ours.name.removesuffix(WEIGHT)
    layer = known.get(module_of(ours.name)) if name == ours.name else None
    where: Place = place(name, ours.spec, kind, layer) if numbers else ""
    parent, _, leaf = module.rpartition(".")
    if leaf in ROUTERS and parent in routed:
        where = "a router of experts, which PEFT does not wrap"
    if isinstance(where, Matrices):
        return WeightPair(name, ours, theirs, where)
    return WeightPair(name, ours, theirs, None, where)


def _tied(
    base: Base, tuned: Base, found: Correspondence, notes: list[str]
) -> list[tuple[str, View, View]]:
    """Pair an output layer that one side ties to its embedding with that embedding."""
    table = next((each for each in found.same if _leaf(each.base.name) in EMBEDDINGS), None)
    if table is None:
        return []
    links = []
    paired = {each.base.name for each in found.same}
    for name, view in sorted(found.base.items()):
        if _leaf(name) in HEADS and name not in paired and tuned.model.tied:
            links.append((name, view, table.tuned))
            notes.append(f"{name} is tied to {table.tuned.key} in the tuned model.")
    for name, view in sorted(found.tuned.items()):
        if _leaf(name) in HEADS and name not in found.base:
            same = table.base.spec.shape[1:] == view.spec.shape[1:]
            if same and (base.model.tied or not base.model.config):
                links.append((name, table.base, view))
                notes.append(f"{name} is tied to {table.base.key} in the base.")
    return links


def _is_vocabulary(pair: WeightPair) -> bool:
    columns = pair.spec.shape[1:] == pair.tuned_spec.shape[1:]
    whole = pair.base.is_whole and pair.tuned.is_whole
    return bool(columns and whole and pair.place and by_token(pair.place))


def _check_shapes(base: Base, tuned: Base, both: list[WeightPair], odd: list[WeightPair]) -> None:
    """Refuse two models of which most weights have other shapes: one of the two is another's."""
    if 2 * len(odd) <= len(both):
        return
    wrong = [
        f"{pair.name} {list(pair.spec.shape)} and {list(pair.tuned_spec.shape)}" for pair in odd
    ]
    raise FormatError(
        f"{tuned.path} does not fit {base.path}: {len(wrong)} shapes differ: {some(wrong)}"
    ).hint("Extract from the very base that was fine-tuned.")


def _check_overlap(
    base: Base, tuned: Base, both: list[WeightPair], only_base: tuple[Unmatched, ...]
) -> None:
    """Refuse two models that merely share a few names.

    A part of the base of which the tuned model has no layer at all, as a vision tower, is listed.
    """
    parts = {component(key) for pair in both for key in pair.base.keys}
    matrices = [
        each.name
        for each in only_base
        if len(each.spec.shape) > 1
        and (component(each.name) in parts or not NUMBER.search(each.name))
    ]
    shared = sum(len(pair.spec.shape) > 1 for pair in both)
    if not shared or len(matrices) > shared:
        raise FormatError(
            f"{tuned.path} does not fit {base.path}: it lacks {len(matrices)} of the base's"
            f" matrices: {some(matrices)}"
        ).hint("Are they of the same architecture, and both complete?")


def _leaf(key: str) -> str:
    return key.removesuffix(WEIGHT).rpartition(".")[2]
