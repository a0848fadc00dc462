"""What becomes of each tensor, from the headers of both models alone."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lora_tools.base import Base, base_of
from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.files.address import Address, reopened
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Module, Part
from lora_tools.linalg.krylov import Precision
from lora_tools.model import Model
from lora_tools.names import matches
from lora_tools.verbs.extract.options import ExtractOptions, Treatment
from lora_tools.verbs.extract.pairs import Pairs, WeightPair, match
from lora_tools.verbs.extract.sites import WEIGHT, Matrices

BIAS = ".bias"


class Item(NamedTuple):
    """A pair of tensors and what becomes of it if they differ."""

    number: int
    pair: WeightPair
    treatment: Treatment
    reason: str
    """Why it is left out, if it is."""

    @property
    def name(self) -> str:
        """The module's name, or the tensor's where no LoRA can hold it."""
        return self.pair.place.module if self.pair.place else self.pair.name


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """Both models, paired, and what is to be done."""

    base: Model
    tuned: Model
    weights: tuple[Base, Base]
    """What the two hold."""
    pairs: Pairs
    items: tuple[Item, ...]
    """In the order of the tuned model's files."""
    options: ExtractOptions

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: another process plans the same from the same headers, once."""
        return reopened, (self.address,)

    @property
    def address(self) -> Address:
        """How another process plans the same; what its runtime refuses has been refused here."""
        options = replace(self.options, runtime=None)
        return Address(make_plan, (self.base.address, self.tuned.address, options))

    @property
    def nbytes(self) -> int:
        """How much will be read at least once."""
        return sum(item.pair.nbytes for item in self.items)

    def files(self, item: Item) -> set[Location]:
        """Return the files that an item is read from."""
        old, new = self.weights
        weights = [*item.pair.base.weights(old), *item.pair.tuned.weights(new)]
        return {path for weight in weights for path in weight.files}

    @property
    def precision(self) -> Precision:
        """What each matrix has to show, for the chance of failure to hold for all together."""
        stacks = (
            item.pair.place.stack
            for item in self.items
            if item.treatment == "lora" and item.pair.place
        )
        precision = self.options.precision
        return replace(precision, chance=precision.chance / max(sum(stacks), 1))

    def dtype(self, item: Item) -> str:
        """Return the dtype of a module's factors."""
        own = item.pair.tuned_spec.dtype
        return self.options.dtype or (own if own in FLOATS else "BF16")

    def module(self, item: Item, rank: int) -> Module:
        """Return the adapter's module for an item."""
        place = _placed(item)
        site = place.site
        bare = Module(
            name=place.module,
            site=site,
            out=place.out,
            inp=place.inp,
            rank=rank,
            alpha=self.options.alpha or float(rank),
            rslora=False,
            parts={},
            key_prefix="",
            owner=place.module,
        )
        b, a = factor_shapes(bare)
        code = self.dtype(item)
        return replace(bare, parts={"a": Part("", Spec(code, a)), "b": Part("", Spec(code, b))})

    @property
    def tied(self) -> bool:
        """Whether both models score tokens with their embedding."""
        return self.base.tied and self.tuned.tied

    @property
    def unchanged(self) -> set[str]:
        """Every module of the base that has tensors, and those that hold them."""
        names: set[str] = set()
        for key in self.pairs.names:
            parts = key.split(".")[:-1]
            names |= {".".join(parts[:stop]) for stop in range(1, len(parts) + 1)}
        return names


def make_plan(base: Model, tuned: Model, options: ExtractOptions) -> ExtractPlan:
    """Pair the tensors and decide what becomes of each. Reads headers only.

    Raises `UnsupportedError` for quantised checkpoints, `FormatError` for models that do not fit
    together, and `PolicyError` for a vocabulary that grew and patterns that match nothing.
    """
    remedy = (
        "A difference of quantised weights is mostly quantisation. Give the checkpoint that was"
        " quantised, in bfloat16, float16 or float32."
    )
    weights = base_of(base, remedy), base_of(tuned, remedy)
    pairs = match(*weights)
    ordered = sorted(
        pairs.both, key=lambda pair: min(each.position for each in pair.tuned.weights(weights[1]))
    )
    chosen = [options.treatment(pair) for pair in ordered]
    saved = savable(pairs, weights[1]) if "full" in chosen else frozenset()
    wanted = {
        owner(pair.name)
        for pair, treatment in zip(ordered, chosen, strict=True)
        if treatment == "full" and owner(pair.name) in saved
    }
    lora = {p.place.module for p, t in zip(ordered, chosen, strict=True) if p.place and t == "lora"}
    items = tuple(
        _item(number, pair, options, _fate(pair, treatment, wanted - lora, lora))
        for number, (pair, treatment) in enumerate(zip(ordered, chosen, strict=True))
    )
    _check_patterns(items, tuned, options)
    grown = [item for item in items if item.pair.grown and item.treatment == "lora"]
    if grown:
        sizes = [
            f"{item.name} {item.pair.spec.shape[0]} → {item.pair.tuned_spec.shape[0]}"
            for item in grown
        ]
        raise PolicyError(f"{tuned.path}: the vocabulary grew: {some(sizes)}").hint(
            "A LoRA cannot add rows: --embeddings full stores the tables whole, skip leaves them."
        )
    refused = [
        item.name for item in items if item.treatment == "lora" and options.refused(item.pair)
    ]
    if refused and options.runtime:
        raise UnsupportedError(
            f"{options.runtime.name} does not load a LoRA of embeddings: {some(refused)}"
        ).hint("Pass --embeddings skip.")
    return ExtractPlan(base, tuned, weights, pairs, items, options)


def owner(name: str) -> str:
    """Return the module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _fate(
    pair: WeightPair, treatment: Treatment, saved: set[str], adapted: set[str]
) -> Treatment | None:
    """Return what becomes of a pair; None if it should be stored whole and PEFT cannot do that.

    A module is stored with all its tensors: those that are equal, too, or PEFT misses them.
    """
    if owner(pair.name) in saved:
        return "full"
    bias = pair.name.endswith(BIAS) and owner(pair.name) in adapted
    return None if treatment == "full" and not bias else treatment


def _item(
    number: int, pair: WeightPair, options: ExtractOptions, treatment: Treatment | None
) -> Item:
    if treatment is None:
        return Item(number, pair, "skip", "PEFT cannot store it whole")
    if treatment == "skip":
        reason, name = "--include, --exclude", pair.place.module if pair.place else pair.name
        if name in options.nameless:
            reason = "the format of --to has no name for it"
        elif options.selects(name):
            why = pair.why or "no LoRA can hold it"
            reason = "--embeddings skip" if pair.place else f"{why}: --small skip"
        return Item(number, pair, "skip", reason)
    return Item(number, pair, treatment, "")


def savable(pairs: Pairs, tuned: Base) -> frozenset[str]:
    """Return the modules that PEFT can store whole and find again.

    It takes a module with all that is in it, and every other whose name ends with the same
    letters (`peft.utils.other._set_trainable`). A weight with a scale would lose that.
    """
    inside: dict[str, set[str]] = {}
    for name in pairs.names:
        inside.setdefault(owner(name), set()).add(name)
    above = {parent for module in inside for parent in _parents(module)}
    known = {
        pair.name
        for pair in pairs.both
        if pair.tuned.is_whole and tuned[pair.tuned.key].whole and tuned[pair.tuned.key].is_numbers
    }
    backwards = sorted(module[::-1] for module in above | inside.keys())
    return frozenset(
        module
        for module, names in inside.items()
        if module not in above
        and names <= known
        and all(name.endswith((WEIGHT, BIAS)) for name in names)
        and not _is_end(module[::-1], backwards)
    )


def _parents(module: str) -> Iterator[str]:
    while module := owner(module):
        yield module


def _is_end(module: str, backwards: Sequence[str]) -> bool:
    """Whether a name is the end of another; all of them backwards, and sorted."""
    at = bisect_right(backwards, module)
    return at < len(backwards) and backwards[at].startswith(module)


def _check_patterns(items: tuple[Item, ...], tuned: Model, options: ExtractOptions) -> None:
    names = [item.name for item in items]
    patterns = [*options.include, *options.exclude]
    idle = [p for p in patterns if not any(matches(p, name) for name in names)]
    if idle:
        raise PolicyError(f"{tuned.path}: no module matches {some(idle)}").hint(
            f"Its modules are {some(names)}."
        )


def _placed(item: Item) -> Matrices:
    if item.pair.place is None:
        raise ValueError(f"{item.name} has no place")
    return item.pair.place
