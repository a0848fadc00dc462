"""Lower the rank of an update and measure what that cost, on the bytes that will be stored."""

import math
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Factors, Small, factors_of
from lora_tools.linalg.metrics import NOISE, distance, trace
from lora_tools.linalg.range import check_measurable
from lora_tools.scaling import scale
from lora_tools.shapes import Float
from lora_tools.update import LowRank


class Truncated(NamedTuple):
    """An update of lower rank, in its stored types, and its squared distance from the original."""

    update: LowRank
    squared_error: float


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused at the end
def truncate(
    update: LowRank,
    s: Float[Small, "*stack rank"],
    left: Float[Small, "*stack rank k"],
    rank: int,
    *,
    dtypes: tuple[str, str],
    alpha: float | None,
    rslora: bool,
    factors: Factors | None = None,
) -> Truncated:
    """Return the best approximation of ``rank`` as factors of types ``dtypes`` (of B, of A).

    ``s`` and ``left`` are those of the update's `core`, with at least ``rank`` columns of ``left``;
    ``factors`` are its factors if held already.

    B' = U sqrt(S) is rounded first; A' is then the least-squares fit to B' *as rounded*, which
    costs nothing that the error would not need, and is never worse than rounding sqrt(S) Vt. Both
    are range-safe in half precision, because each carries half of the magnitude.

    Costs O((out + inp) * rank * k). Raises `NonFiniteError` if the type cannot hold the numbers,
    or the scale is so large or so small that float64 cannot hold its square.
    """
    new_scale = scale(alpha, rank * update.groups, rslora=rslora)
    check_measurable(1.0, new_scale)
    share = 1 / abs(new_scale) if new_scale else 0.0
    factors = factors or factors_of(update)
    b, a, old_scale = factors
    new_b = b.times(left[..., :rank] * math.sqrt(share), dtypes[0])
    own, cross = new_b.dot(new_b), new_b.dot(b)
    fit = math.copysign(share, new_scale) * old_scale * least_squares(own, cross)
    new_a = a.times(fit.swapaxes(-1, -2), dtypes[1])
    whole = float(np.square(s).sum())
    squared = (
        whole
        - 2 * trace(old_scale * cross, new_scale * new_a.dot(a))
        + trace(new_scale * own, new_scale * new_a.dot(new_a))
    )
    if not math.isfinite(squared):
        raise NonFiniteError(f"values exceed the range of {' or '.join(sorted(set(dtypes)))}")
    if squared < NOISE * whole:
        squared = distance(factors, Factors(new_b, new_a, new_scale)) ** 2
    pair = new_a.array.swapaxes(-1, -2), new_b.array
    return Truncated(LowRank(*pair, alpha, rslora, update.groups), squared)


def least_squares(
    own: Float[Small, "*stack k k"], cross: Float[Small, "*stack k rank"]
) -> Float[Small, "*stack k rank"]:
    """Return the least-squares solution X of ``b' @ X = b`` from b'tb' and b'tb.

    Columns are scaled to length 1 first; directions below rounding noise are left out.
    """
    if not np.isfinite(own).all():
        return cross  # out of the type's range: the caller sees it in the error
    length = np.sqrt(np.diagonal(own, axis1=-2, axis2=-1))
    weight = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0.0)
    unit = weight[..., :, None] * own * weight[..., None, :]
    right = weight[..., :, None] * cross
    # B' = U sqrt(S) is orthogonal but for its rounding, unless columns vanish.
    size = unit.shape[-1]
    nearly = size * np.abs(unit - np.eye(size)).max(initial=0.0) < 0.5
    inverse = np.linalg.inv(unit) if nearly else np.linalg.pinv(unit, rcond=1e-12, hermitian=True)
    solution: Small = weight[..., :, None] * (inverse @ right)
    return solution
