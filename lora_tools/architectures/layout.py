"""Layouts: how the rows of one module of a dialect are those of the family's fine modules.

    rows of the fine modules, one under the other  =  rows of the coarse module, in another order

One order serves the rows of weights, biases, DoRA magnitudes and the B of a LoRA alike, and A is
shared. Everything here is arithmetic on row numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, assert_never

from lora_tools.architectures.rows import Rows, count, joined, select
from lora_tools.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from fractions import Fraction

Numbers: TypeAlias = Mapping[str, int]
"""Numbers of a base model that no shape tells: ``heads``, ``kv_heads``."""

Role: TypeAlias = Literal["linear", "depthwise", "embedding", "head", "router", "norm", "parameter"]
"""What a module is: ``linear`` covers convolutions, ``parameter`` is a bare tensor."""


class Dimensions(NamedTuple):
    """Rows and columns of a module's weight, whichever way it is stored, and how many it stacks."""

    out: int
    inp: int
    stack: int = 1


@dataclass(frozen=True, slots=True)
class Halves:
    """The two halves change places, as of scale and shift, or of gate and value."""


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Each head has the rows that rotate together in pairs: (r, i, r, i), not (r, r, i, i)."""

    heads: str


Order: TypeAlias = Halves | Interleaved | None


class FinePart(NamedTuple):
    """A fine module, and which share of the coarse rows it has."""

    path: str
    share: str = "1"
    """A number, the name of one, or ``in``: as many rows as the module has columns."""
    order: Order = None


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a coarse module is made of fine ones. Fields that are not given leave things alone."""

    parts: tuple[FinePart, ...]
    groups: str = ""
    """How often the parts take turns: a number, the name of one, or ``rows`` for every row."""
    ratio: "Fraction | int | None" = None
    """Rows per column of the whole: what has another number of rows is not this module."""
    stacked: bool = False
    """Whether the tensor has a leading axis with one matrix per number at ``*``."""
    transposed: bool = False
    """Whether the matrix is stored as (in, out)."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Shapes of the coarse and the fine tensor where they differ; 0 keeps a side, -1 infers it."""
    tensors: tuple[tuple[str, str], ...] = ()
    """What the coarse module's tensors are called in the fine one; none: alike."""
    role: Role | None = None

    def fits(self, size: Dimensions | None) -> bool:
        """Whether a coarse module of this size can be this one, as far as is known."""
        return size is None or self.ratio is None or size.out == self.ratio * size.inp

    def has(self, tensor: str) -> bool:
        """Whether the coarse module has this tensor of its fine ones."""
        return not self.tensors or any(fine == tensor for _, fine in self.tensors)

    def named(self, tensor: str) -> str:
        """Return what the coarse module calls this tensor of its fine ones."""
        return next((coarse for coarse, fine in self.tensors if fine == tensor), tensor)

    def height(self, known: Mapping[int, int], inp: int, numbers: Numbers) -> int:
        """Return how many rows the whole has, by those of some of its parts.

        Raises `UnsupportedError` if that takes a number that is not known.
        """
        if self.ratio is not None:
            return int(self.ratio * inp)
        if len(known) == len(self.parts):
            return sum(known.values())
        fixed, shares = self._shares(inp, numbers)
        part = next((part for part in known if part in shares), None)
        if part is None:
            raise UnsupportedError(f"{self.parts[0].path}: the rows beside it are not known")
        return sum(fixed.values()) + known[part] * sum(shares.values()) // shares[part]

    def rows(
        self, out: int, inp: int, numbers: Numbers, known: Mapping[int, int] | None = None
    ) -> tuple[Rows, ...]:
        """Return the coarse rows that are each part's, in the part's own order.

        ``known``: how many rows parts have, where that is known. Raises `FormatError` if the rows
        do not divide so, `UnsupportedError` if that takes a number that is not known.
        """
        cuts = self._cuts(out, inp, numbers, known or {})
        turns = self._turns(out, numbers)
        if any(cut % turns for cut in cuts):
            raise FormatError(f"{self._names()}: {cuts} rows do not divide into {turns} groups")
        if self.groups in numbers and any(numbers.get(name, 0) % turns for name in self._named()):
            raise FormatError(f"{out} rows are not those of {self._names()} in {turns} groups")
        rows, period, start = [], out // turns, 0
        for part, cut in zip(self.parts, cuts, strict=True):
            size = cut // turns
            runs = (range(g * period + start, g * period + start + size) for g in range(turns))
            alone = range(start, out, period) if size == 1 else None
            rows.append(_ordered((alone,) if alone else joined(runs), part.order, numbers))
            start += size
        return tuple(rows)

    def _cuts(self, out: int, inp: int, numbers: Numbers, known: Mapping[int, int]) -> list[int]:
        """Return how many rows each part has."""
        unnamed = len(known) == len(self.parts) and not self._named() <= {"in", *numbers}
        if unnamed:
            cuts = [known[part] for part in range(len(self.parts))]
        else:
            fixed, shares = self._shares(inp, numbers)
            unit, odd = divmod(out - sum(fixed.values()), sum(shares.values()) or 1)
            odd = odd if shares else out - sum(fixed.values())
            cuts = [fixed[n] if n in fixed else shares[n] * unit for n in range(len(self.parts))]
            if odd or min(cuts) < 1:
                raise FormatError(f"{out} rows are not those of {self._names()}")
        if any(cuts[part] != rows for part, rows in known.items()):
            sizes = sorted(known.values())
            raise FormatError(f"{self._names()}: layers of {sizes} rows cannot be fused")
        return cuts

    def _named(self) -> set[str]:
        return {part.share for part in self.parts if not part.share.isdigit()}

    def _shares(self, inp: int, numbers: Numbers) -> tuple[dict[int, int], dict[int, int]]:
        """Return the parts' fixed rows, and in which proportion others share the rest."""
        fixed = {n: inp for n, part in enumerate(self.parts) if part.share == "in"}
        shares = {
            n: number(part.share, numbers, part.path)
            for n, part in enumerate(self.parts)
            if n not in fixed
        }
        return fixed, shares

    def _turns(self, out: int, numbers: Numbers) -> int:
        if not self.groups:
            return 1
        if self.groups == "rows":
            return out // len(self.parts)
        return number(self.groups, numbers, self._names())

    def _names(self) -> str:
        return ", ".join(part.path for part in self.parts)


def number(text: str, numbers: Numbers, what: str) -> int:
    """Return a number by its name or digits; `UnsupportedError` if nobody has said it."""
    if text.isdigit():
        return int(text)
    if text not in numbers:
        raise UnsupportedError(
            f"{what}: how its rows lie depends on {text} of the base model"
        ).hint("Give the base model, whose config.json says it: --base MODEL.")
    return numbers[text]


def fill(path: str, words: Sequence[str], member: int = 0) -> str:
    """Return the path with its numbers, and that of a member of a stack at ``*``.

    >>> fill("layers.#.experts.*.w1", ["3"], member=7)
    'layers.3.experts.7.w1'
    """
    left = iter(words)
    named = {"#": lambda: next(left), "*": lambda: str(member)}
    return ".".join(named[word]() if word in named else word for word in path.split("."))


def _ordered(rows: Rows, order: Order, numbers: Numbers) -> Rows:
    out = count(rows)
    match order:
        case None:
            return rows
        case Halves():
            if out % 2:
                raise FormatError(f"{out} rows are not two halves")
            return select(rows, (range(out // 2, out), range(out // 2)))
        case Interleaved(heads=heads):
            size, odd = divmod(out, 2 * number(heads, numbers, "queries and keys"))
            if odd:
                raise FormatError(f"{out} rows are not those of {numbers.get(heads)} heads").hint(
                    "Check that the base model is the one of this adapter."
                )
            ends = range(2 * size, out + 1, 2 * size)
            picks = [range(end - 2 * size + i, end, 2) for end in ends for i in (0, 1)]
            return select(rows, tuple(picks))
        case _:
            assert_never(order)
