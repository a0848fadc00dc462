"""Rank policies: which rank each module keeps, given its singular values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from lora_tools.errors import BoundError, PolicyError, some
from lora_tools.linalg.allocate import RankOptions, minimise
from lora_tools.linalg.spectrum import Spectrum
from lora_tools.shapes import Float


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
        options = [RankOptions(x.costs[::-1], x.tails[::-1]) for x in spectra]
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
        return _affordable(spectra, [x.costs for x in spectra], budget, "parameters")


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
        costs = [x.costs * x.width for x in spectra]
        return _affordable(spectra, costs, self.count - rest.nbytes - rest.header, "bytes")


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
