"""Lower the rank of an update and measure what that cost, on the bytes that will be stored."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.metrics import trace
from lora_tools.linalg.svd import wide
from lora_tools.update import LowRank


class Truncated(NamedTuple):
    """An update of lower rank, in its stored types, and its squared distance from the original."""

    update: LowRank
    squared_error: float


def truncate(
    update: LowRank,
    s: Float[Tensor, "*stack rank"],
    left: Float[Tensor, "*stack rank rank"],
    rank: int,
    *,
    dtypes: tuple[torch.dtype, torch.dtype],
    alpha: float | None,
    rslora: bool,
) -> Truncated:
    """Return the best approximation of ``rank`` as factors of types ``dtypes`` (of B, of A).

    ``s`` and ``left`` are those of the update's `core`.

    B' = U sqrt(S) is rounded first; A' is then the least-squares fit to B' *as rounded*, which
    costs nothing that the error would not need, and is never worse than rounding sqrt(S) Vt. Both
    are range-safe in half precision, because each carries half of the magnitude.

    Costs O((out + inp) * rank * k). Raises `NonFiniteError` if the type cannot hold the numbers.
    """
    result = LowRank(update.a[..., :rank, :], update.b[..., :rank], alpha, rslora, update.groups)
    share = abs(result.scale) ** -0.5 if result.scale else 0.0
    wide_b, wide_a = wide(update.b), wide(update.a)
    # A product may be computed in float32 where its rounding to the stored type is coarser.
    b = update.b.float() if dtypes[0].itemsize < 4 else wide_b
    a = update.a.float() if dtypes[1].itemsize < 4 else wide_a
    new_b = (b @ (left[..., :rank] * share).to(b)).to(dtypes[0])
    wide_new = wide(new_b)
    own, cross = wide_new.mT @ wide_new, wide_new.mT @ wide_b
    sign = -1.0 if result.scale < 0 else 1.0
    fit = sign * update.scale * _solve(own.cpu(), cross.cpu()) * share * share
    new_a = (fit.to(a) @ a).to(dtypes[1])
    wide_fit = wide(new_a)
    squared = (
        float(s.square().sum())
        - 2 * update.scale * result.scale * trace(cross, wide_fit @ wide_a.mT)
        + result.scale**2 * trace(own, wide_fit @ wide_fit.mT)
    )
    if not math.isfinite(squared):
        raise NonFiniteError(f"values exceed the range of {dtypes[0]} or {dtypes[1]}")
    return Truncated(LowRank(new_a, new_b, alpha, rslora, update.groups), max(squared, 0.0))


def _solve(
    own: Float[Tensor, "*stack k k"], cross: Float[Tensor, "*stack k rank"]
) -> Float[Tensor, "*stack k rank"]:
    """Return the least-squares solution X of ``b' @ X = b`` from b'tb' and b'tb.

    Columns are scaled to length 1 first; directions below rounding noise are left out.
    """
    length = own.diagonal(dim1=-2, dim2=-1).sqrt()
    weight = torch.where(length > 0, torch.where(length > 0, length, 1).reciprocal(), 0)
    unit = weight.unsqueeze(-1) * own * weight.unsqueeze(-2)
    inverse = torch.linalg.pinv(unit, rtol=1e-12, hermitian=True)
    solution: Tensor = weight.unsqueeze(-1) * (inverse @ (weight.unsqueeze(-1) * cross))
    return solution
