"""The kinds of update that an adapter holds, as values that are never multiplied out."""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from lora_tools.scaling import scale


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The update ``scale * b @ a``, kept in factors.

    Leading dimensions stack independent updates: the experts of a layer, or the groups of a
    grouped convolution. ``alpha`` is kept instead of the scale because ``(alpha / r) * r`` is not
    always ``alpha``, and a round trip through a file has to be exact.

    >>> LowRank(a=torch.ones(2, 5), b=torch.ones(4, 2), alpha=8).scale
    4.0
    """

    a: Float[Tensor, "*stack rank inp"]
    b: Float[Tensor, "*stack out rank"]
    alpha: float | None
    """``None``: the file has none, and the scale is 1."""
    rslora: bool = False
    """Divide alpha by the square root of the rank (arXiv 2312.03732)."""
    groups: int = 1
    """How many updates of the stack share the rank that alpha is divided by."""

    @property
    def rank(self) -> int:
        """Rank of one update of the stack."""
        return self.a.shape[-2]

    @property
    def scale(self) -> float:
        """The factor of ``b @ a``: 1, alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return scale(self.alpha, self.rank * self.groups, rslora=self.rslora)

    def dense(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*stack out inp"]:
        """Multiply the update out. Costs ``out * inp`` memory: the one place that does."""
        return self.scale * (self.b.to(dtype) @ self.a.to(dtype))


@dataclass(frozen=True, slots=True, eq=False)
class DoRA:
    """A low-rank direction and the row norms that the merged weight is given (arXiv 2402.09353).

    Not additive: ``W' = magnitude * (W + direction) / norm(W + direction)``, row by row.
    """

    direction: LowRank
    magnitude: Float[Tensor, "..."]


@dataclass(frozen=True, slots=True, eq=False)
class Biased:
    """A low-rank update with a bias of its own, which the scale multiplies too."""

    weight: LowRank
    bias: Float[Tensor, " out"]


Update: TypeAlias = LowRank | DoRA | Biased


def factors(update: Update) -> LowRank:
    """Return the low-rank part of any update."""
    match update:
        case LowRank():
            return update
        case DoRA(direction=part) | Biased(weight=part):
            return part
        case _:
            assert_never(update)


def refactored(update: Update, new: LowRank) -> Update:
    """Return ``update`` with its low-rank part replaced.

    The bias of a `Biased` update is multiplied by its scale in use, so it is rescaled to mean
    what it meant; a DoRA magnitude belongs to the merged weight and stays as it is.
    """
    match update:
        case LowRank():
            return new
        case DoRA(magnitude=magnitude):
            return DoRA(new, magnitude)
        case Biased(weight=old, bias=bias):
            ratio = old.scale / new.scale
            if ratio != 1.0:
                bias = (bias.double() * ratio).to(bias.dtype)
            return Biased(new, bias)
        case _:
            assert_never(update)
