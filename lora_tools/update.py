"""The kinds of update that an adapter holds, as values that are never multiplied out."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

from lora_tools.scaling import scale
from lora_tools.shapes import Float

Array: TypeAlias = Any
"""A torch tensor, or a numpy array where numpy has the dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The update ``scale * b @ a``, kept in factors.

    Leading dimensions stack independent updates: the experts of a layer, or the groups of a
    grouped convolution. ``alpha`` is kept instead of the scale because ``(alpha / r) * r`` is not
    always ``alpha``, and a round trip through a file has to be exact.

    >>> from numpy import ones
    >>> LowRank(a=ones((2, 5)), b=ones((4, 2)), alpha=8).scale
    4.0
    """

    a: Float[Array, "*stack rank inp"]
    b: Float[Array, "*stack out rank"]
    alpha: float | None
    """``None``: the file has none, and the scale is 1."""
    rslora: bool = False
    """Divide alpha by the square root of the rank (arXiv 2312.03732)."""
    groups: int = 1
    """How many updates of the stack share the rank that alpha is divided by."""

    @property
    def rank(self) -> int:
        """Rank of one update of the stack."""
        return int(self.a.shape[-2])

    @property
    def scale(self) -> float:
        """The factor of ``b @ a``: 1, alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return scale(self.alpha, self.rank * self.groups, rslora=self.rslora)

    def dense(self, dtype: Any = "float32") -> Float[Array, "*stack out inp"]:
        """Multiply the update out, in ``dtype``.

        Costs ``out * inp`` memory: the one place that does.
        """
        return self.scale * (_cast(self.b, dtype) @ _cast(self.a, dtype))


@dataclass(frozen=True, slots=True, eq=False)
class DoRA:
    """A low-rank direction and the norms that the merged weight is given (arXiv 2402.09353).

    Not additive: ``W' = magnitude * (W + direction) / norm(W + direction)``, row by row; column
    by column where ``axis`` is ``"in"`` (OneTrainer, older LyCORIS).
    """

    direction: LowRank
    magnitude: Float[Array, "..."]
    axis: Literal["out", "in"] = "out"


@dataclass(frozen=True, slots=True, eq=False)
class Biased:
    """A low-rank update with a bias of its own, which the scale multiplies too."""

    weight: LowRank
    bias: Float[Array, " out"]


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


def _cast(array: Array, dtype: Any) -> Array:
    if hasattr(array, "astype"):
        return array.astype(dtype)
    import torch  # the array is torch's own

    return array.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
