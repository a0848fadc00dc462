"""Which tensor of the tuned model is which of the base, or why they do not fit together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_tools.architectures.conventions import EMBEDDINGS
from lora_tools.architectures.detection import Hints
from lora_tools.base import Base
from lora_tools.errors import FormatError, some
from lora_tools.files.header import Spec
from lora_tools.matching import align
from lora_tools.matching.layers import Layer, layers
from lora_tools.verbs.extract.sites import HEADS, WEIGHT, Matrices, by_token, place


class WeightPair(NamedTuple):
    """A weight on both sides."""

    name: str
    """As the base calls it; an output layer that only the tuned model has keeps its own name."""
    base: str
    """The base's tensor."""
    tuned: str
    spec: Spec
    """Of the base's tensor."""
    tuned_spec: Spec
    place: Matrices | None
    """None: no LoRA can hold its update."""

    @property
    def grown(self) -> bool:
        """Whether a vocabulary has other sizes on the two sides."""
        return self.spec.shape != self.tuned_spec.shape

    @property
    def nbytes(self) -> int:
        """What both sides of it weigh on disk."""
        return self.spec.nbytes + self.tuned_spec.nbytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """Everything that both models hold, and what only one does."""

    both: tuple[WeightPair, ...]
    only_base: tuple[str, ...] = ()
    only_tuned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def match(base: Base, tuned: Base) -> Pairs:
    """Pair the tensors of two models, whatever prefix stands before either's names.

    Raises `FormatError` if the models are of different architectures or shapes.
    """
    ours, theirs = list(base), list(tuned)
    prefixes = align(theirs, ours)
    if prefixes.ties or not prefixes.found:
        reason = "fit in several places" if prefixes.ties else "share no name"
        raise FormatError(
            f"{tuned.path} and {base.path} are of different architectures: their tensors {reason}"
        ).hint(f"Tuned: {some(theirs, 3)}. Base: {some(ours, 3)}.")
    where: dict[str, str] = {}
    for key in theirs:
        name = prefixes(key)
        known = name in base and name not in where
        where[name if name and known else f"{key} (of the tuned model)"] = key
    notes = [swap.sentence("The tuned model", "the base") for swap in prefixes.swaps(theirs)]
    links = [(key, key, where[key]) for key in ours if key in where]
    links += _tied(base, tuned, where, notes)
    paired = {tuned_key for _, _, tuned_key in links}
    tables = layers(base.specs, Hints(type=base.model.fields.text("model_type") or ""))
    both = tuple(_pair(base, tuned, tables, *link) for link in links)
    _check_shapes(base, tuned, both)
    named = {base_key for name, base_key, _ in links if name == base_key} | {n for n, _, _ in links}
    only_base = tuple(key for key in ours if key not in named)
    only_tuned = tuple(key for key in theirs if key not in paired)
    _check_overlap(base, tuned, both, only_base)
    return Pairs(both, only_base, only_tuned, tuple(notes))


def _pair(
    base: Base, tuned: Base, known: Mapping[str, Layer], name: str, base_key: str, tuned_key: str
) -> WeightPair:
    spec, other = base.specs[base_key], tuned.specs[tuned_key]
    is_numbers = base[base_key].is_numbers and tuned[tuned_key].is_numbers
    layer = known.get(base_key.removesuffix(WEIGHT)) if name == base_key else None
    where = place(name, spec, base.model, layer) if is_numbers else None
    return WeightPair(name, base_key, tuned_key, spec, other, where)


def _tied(
    base: Base, tuned: Base, where: dict[str, str], notes: list[str]
) -> list[tuple[str, str, str]]:
    """Pair an output layer that one side ties to its embedding with that embedding."""
    table = next((key for key in base if _leaf(key) in EMBEDDINGS and key in where), None)
    if table is None:
        return []
    links = []
    heads = {key for key in [*base, *where] if _leaf(key) in HEADS}
    for head in sorted(heads):
        name = head.removesuffix(" (of the tuned model)")
        if head in base and head not in where and tuned.model.tied:
            links.append((name, head, where[table]))
            notes.append(f"{name} is tied to {where[table]} in the tuned model.")
        elif head in where and head not in base and name not in base:
            same = base.specs[table].shape[1:] == tuned.specs[where[head]].shape[1:]
            if same and (base.model.tied or not base.model.config):
                links.append((name, table, where[head]))
                notes.append(f"{name} is tied to {table} in the base.")
    return links


def _check_shapes(base: Base, tuned: Base, both: tuple[WeightPair, ...]) -> None:
    wrong = [
        f"{pair.name} {list(pair.spec.shape)} and {list(pair.tuned_spec.shape)}"
        for pair in both
        if pair.grown
        and not (
            pair.place and by_token(pair.place) and pair.spec.shape[1:] == pair.tuned_spec.shape[1:]
        )
    ]
    if wrong:
        raise FormatError(
            f"{tuned.path} does not fit {base.path}: {len(wrong)} shapes differ: {some(wrong)}"
        ).hint("Extract from the very base that was fine-tuned.")


def _check_overlap(
    base: Base, tuned: Base, both: tuple[WeightPair, ...], only_base: tuple[str, ...]
) -> None:
    """Refuse two models that merely share a few names."""
    matrices = [key for key in only_base if len(base.specs[key].shape) > 1]
    shared = sum(len(pair.spec.shape) > 1 for pair in both)
    if not shared or len(matrices) > shared:
        raise FormatError(
            f"{tuned.path} does not fit {base.path}: it lacks {len(matrices)} of the base's"
            f" matrices: {some(matrices)}"
        ).hint("Are they of the same architecture, and both complete?")


def _leaf(key: str) -> str:
    return key.removesuffix(" (of the tuned model)").removesuffix(WEIGHT).rpartition(".")[2]
