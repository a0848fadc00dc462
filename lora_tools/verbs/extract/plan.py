"""What becomes of each tensor, from the headers of both models alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lora_tools.base import Base, base_of
from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.files.address import Address, reopened
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
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

    def files(self, item: Item) -> set[Path]:
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
            alpha=float(rank),
            rslora=False,
            parts={},
            key_prefix="",
            owner=place.module,
        )
        b, a = factor_shapes(bare)
        code = self.dtype(item)
        return replace(bare, parts={"a": Part("", Spec(code, a)), "b": Part("", Spec(code, b))})

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
    items = tuple(_item(number, pair, weights[1], options) for number, pair in enumerate(ordered))
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


def _item(number: int, pair: WeightPair, tuned: Base, options: ExtractOptions) -> Item:
    treatment = options.treatment(pair)
    name = pair.place.module if pair.place else pair.name
    if treatment == "full" and not _storable(pair, tuned):
        return Item(number, pair, "skip", "PEFT cannot store it whole")
    if treatment == "skip":
        reason = "--include, --exclude"
        if options.selects(name):
            why = pair.why or "no LoRA can hold it"
            reason = "--embeddings skip" if pair.place else f"{why}: --small skip"
        return Item(number, pair, "skip", reason)
    return Item(number, pair, treatment, "")


def _storable(pair: WeightPair, tuned: Base) -> bool:
    module, _, _ = pair.name.rpartition(".")
    known = pair.name.endswith((WEIGHT, BIAS)) and bool(module)
    return known and pair.tuned.is_whole and tuned[pair.tuned.key].whole  # a scale would be lost


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
