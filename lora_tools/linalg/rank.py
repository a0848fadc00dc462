"""Rank policies: which rank each module keeps, given its singular values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lora_tools.errors import BoundError, PolicyError, some
from lora_tools.linalg.allocate import RankOptions, minimise
from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What a policy knows of one module."""

    name: str
    tail: Float[np.ndarray, " ranks"]
    """Squared Frobenius norm of what is left when 0, 1, … values of each update are kept."""
    cost: float
    """Parameters per unit of rank."""
    width: float
    """Bytes per parameter, as they will be stored."""
    choices: tuple[int, ...]
    """The ranks that it may be given, ascending."""
    groups: int = 1
    """A rank of ``groups * k`` keeps k singular values of each update of the stack."""

    @property
    def tails(self) -> Float[np.ndarray, " choices"]:
        """Squared Frobenius norm of what each choice discards."""
        return self.tail[[choice // self.groups for choice in self.choices]]


def tail(s: Float[Small, "*stack rank"]) -> Float[np.ndarray, " ranks"]:
    """Return the squared norm of what is left of a stack when 0, 1, … values are kept.

    >>> tail(np.array([3.0, 1.0]))
    array([10.,  1.,  0.])
    """
    energy = np.square(s).reshape(-1, s.shape[-1]).sum(0)
    # Summed from the small end, so that small tails keep their digits.
    return np.append(np.cumsum(energy[::-1])[::-1], 0.0)


NOISE = 8 * 2.0**-24
"""A share of the norm that factors in float32 cannot tell from their own rounding."""


def numerical_rank(s: Float[Small, " rank"]) -> int:
    """Return how many singular values are more than noise; all of them if all are zero.

    >>> numerical_rank(np.array([2.0, 1.0, 1e-9, 1e-12])), numerical_rank(np.zeros(3))
    (2, 3)
    """
    left = np.sqrt(tail(s))
    return int(np.argmax(left <= NOISE * left[0])) if left[0] else len(s)


class Rest(NamedTuple):
    """What the file holds besides the factors; budgets are for the whole file."""

    params: int = 0
    nbytes: int = 0
    header: int = 0


NOTHING = Rest()


@runtime_checkable
class RankPolicy(Protocol):
    """Chooses one of its ``choices`` for every module."""

    @property
    def pointwise(self) -> bool:
        """Whether each module's rank depends on that module alone."""
        ...

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the ranks, in order; raise `BoundError` if no choice keeps what was promised."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Each module keeps at most ``rank``."""

    rank: int

    def __post_init__(self) -> None:
        _positive("rank", self.rank)

    def __str__(self) -> str:
        return f"rank {self.rank}"

    @property
    def pointwise(self) -> bool:
        """Each module on its own."""
        return True

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the largest choice up to the rank; `BoundError` where every choice is larger."""
        below = [[k for k in spectrum.choices if k <= self.rank] for spectrum in spectra]
        _refuse(str(self), [x.name for x, fits in zip(spectra, below, strict=True) if not fits])
        return [fits[-1] for fits in below]


@dataclass(frozen=True, slots=True)
class Energy:
    """Each module keeps the smallest rank with at least ``share`` of its ``||dW||_F ** 2``."""

    share: float

    def __post_init__(self) -> None:
        _fraction("energy", self.share)

    def __str__(self) -> str:
        return f"energy {self.share:g}"

    @property
    def pointwise(self) -> bool:
        """Each module on its own."""
        return True

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the smallest sufficient ranks; `BoundError` where no choice is enough."""
        return _smallest(str(self), spectra, 1 - self.share)


@dataclass(frozen=True, slots=True)
class MaxError:
    """The fewest parameters with a relative Frobenius error of at most ``bound``.

    For the whole adapter, or ``per_module`` for each module on its own.
    """

    bound: float
    per_module: bool = False

    def __post_init__(self) -> None:
        _fraction("max-error", self.bound)

    def __str__(self) -> str:
        return f"max-error {self.bound:g}" + (" per module" if self.per_module else "")

    @property
    def pointwise(self) -> bool:
        """Only as a bound on each module."""
        return self.per_module

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the cheapest ranks; `BoundError` if even the largest choices miss the bound."""
        if self.per_module:
            return _smallest(str(self), spectra, self.bound**2)
        total = sum(spectrum.tail[0] for spectrum in spectra)
        # A millionth of slack for sums of squares that end on the bound itself.
        budget = self.bound**2 * total * (1 + 1e-12)
        least = sum(spectrum.tails[-1] for spectrum in spectra)
        if least > budget:
            raise BoundError(
                f"max-error {self.bound} cannot be kept: the largest ranks allowed leave"
                f" {math.sqrt(least / total):.3g}"
            ).hint("Allow larger ranks, or a larger error.")
        options = [RankOptions(_costs(x)[::-1], x.tails[::-1]) for x in spectra]
        picks = minimise(options, budget)
        return [x.choices[::-1][pick] for x, pick in zip(spectra, picks, strict=True)]


@dataclass(frozen=True, slots=True)
class MaxParams:
    """The smallest error with at most ``count`` parameters in the file."""

    count: int

    def __post_init__(self) -> None:
        _positive("max-params", self.count)

    def __str__(self) -> str:
        return f"max-params {self.count}"

    @property
    def pointwise(self) -> bool:
        """Modules compete for the budget."""
        return False

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the best affordable ranks; `BoundError` if the smallest cost too much."""
        budget = self.count - rest.params
        return _affordable(spectra, [_costs(x) for x in spectra], budget, "parameters")


@dataclass(frozen=True, slots=True)
class MaxBytes:
    """The smallest error with a file of at most ``count`` bytes, header included."""

    count: int

    def __post_init__(self) -> None:
        _positive("max-size", self.count)

    def __str__(self) -> str:
        return f"max-size {self.count}"

    @property
    def pointwise(self) -> bool:
        """Modules compete for the budget."""
        return False

    def ranks(self, spectra: Sequence[Spectrum], rest: Rest = NOTHING) -> list[int]:
        """Return the best affordable ranks; `BoundError` if the smallest cost too much."""
        costs = [_costs(x) * x.width for x in spectra]
        return _affordable(spectra, costs, self.count - rest.nbytes - rest.header, "bytes")


def choices(
    rank: int, *, least: int = 1, most: int | None = None, multiple: int = 1
) -> tuple[int, ...]:
    """Return the ranks that a module of ``rank`` may be given, ascending.

    Multiples of ``multiple`` between ``least`` and ``most``, never above its own rank. A module
    whose own rank is below the smallest of them keeps it. Raises `BoundError` if there are none.

    >>> choices(20, multiple=8), choices(4, multiple=8), choices(4, least=3)
    ((8, 16), (4,), (3, 4))
    """
    first = -(-least // multiple) * multiple
    if rank < first:
        return (rank,)
    allowed = tuple(range(first, min(rank, most or rank) + 1, multiple))
    if not allowed:
        raise BoundError(f"no rank from {least} to {most} is a multiple of {multiple}").hint(
            "Change --min-rank, --max-rank or --multiple-of."
        )
    return allowed


def uniform(
    policy: RankPolicy, spectra: Sequence[Spectrum], sizes: Sequence[int], rest: Rest = NOTHING
) -> tuple[int, list[int]]:
    """Return one rank for the whole file, of the ``sizes`` allowed, and the rank of each module.

    Modules of a smaller rank are padded to the common one, and pay for it. A bound on error takes
    the smallest size that keeps it; a budget takes the largest that it can pay.
    """
    if isinstance(policy, Fixed):
        ranks = policy.ranks(spectra)
        sizes = [size for size in sizes if size >= max(ranks)]
        if not sizes:
            raise BoundError(f"rank {max(ranks)} is more than the largest rank allowed")
        return min(sizes), ranks
    refusal = BoundError("no rank that is allowed for all is large enough")
    for size in sorted(sizes, reverse=isinstance(policy, MaxParams | MaxBytes)):
        kept = [max((k for k in x.choices if k <= size), default=0) for x in spectra]
        if not all(kept):
            continue
        try:
            padded = [
                replace(x, choices=(k,), cost=x.cost * size / k)
                for x, k in zip(spectra, kept, strict=True)
            ]
            return size, policy.ranks(padded, rest)
        except BoundError as error:
            refusal = error
    raise refusal


def _costs(spectrum: Spectrum) -> Float[np.ndarray, " choices"]:
    return np.array(spectrum.choices, dtype=np.float64) * spectrum.cost


def _smallest(bound: str, spectra: Sequence[Spectrum], share: float) -> list[int]:
    enough = [x.tails <= share * x.tail[0] * (1 + 1e-12) for x in spectra]
    _refuse(bound, [x.name for x, fits in zip(spectra, enough, strict=True) if not fits.any()])
    return [x.choices[int(fits.argmax())] for x, fits in zip(spectra, enough, strict=True)]


def _affordable(
    spectra: Sequence[Spectrum],
    costs: Sequence[Float[np.ndarray, " _"]],
    budget: float,
    unit: str,
) -> list[int]:
    least = sum(float(cost[0]) for cost in costs)
    if least > budget:
        raise BoundError(
            f"too few {unit}: {max(budget, 0):,} are left for factors beside the rest of the file,"
            f" and the smallest ranks allowed need {least:,.0f}"
        ).hint("Raise the budget or allow smaller ranks.")
    options = [RankOptions(x.tails, cost) for x, cost in zip(spectra, costs, strict=True)]
    picks = minimise(options, budget)
    return [x.choices[pick] for x, pick in zip(spectra, picks, strict=True)]


def _refuse(bound: str, names: Sequence[str]) -> None:
    if names:
        raise BoundError(f"{bound} cannot be kept in {some(names)}").hint(
            "Change --min-rank, --max-rank or --multiple-of, or ask for less."
        )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise PolicyError(f"{name} must be at least 1, not {value}")


def _fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise PolicyError(f"{name} must be above 0 and at most 1, not {value}")
