"""Say the same update under another scale or in another type, without rounding where possible."""

from typing import NamedTuple

import torch
from torch import Tensor

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.metrics import squared_distance
from lora_tools.update import LowRank


class Rescaled(NamedTuple):
    """The update in its new types, and its squared distance from the original."""

    update: LowRank
    squared_error: float


def rescale(
    update: LowRank,
    *,
    dtypes: tuple[torch.dtype, torch.dtype],
    alpha: float | None,
    rslora: bool,
) -> Rescaled:
    """Return ``update`` under another alpha, its factors in ``dtypes`` (of B, of A).

    The change of scale goes into B, or into A where only that is exact: a power of two costs no
    digits unless it leaves the type's range. The error is 0 only if every element is exact.
    Raises `NonFiniteError` if the type cannot hold the numbers.
    """
    like = LowRank(update.a, update.b, alpha, rslora, update.groups)
    ratio = 1.0 if like.scale == update.scale else update.scale / like.scale
    b, b_exact = _times(update.b, ratio, dtypes[0])
    a, a_exact = _times(update.a, 1.0, dtypes[1])
    if not b_exact and ratio != 1.0:
        plain, plain_exact = _times(update.b, 1.0, dtypes[0])
        scaled, scaled_exact = _times(update.a, ratio, dtypes[1])
        if plain_exact and scaled_exact:
            (b, b_exact), (a, a_exact) = (plain, True), (scaled, True)
    result = LowRank(a, b, alpha, rslora, update.groups)
    if b_exact and a_exact:
        return Rescaled(result, 0.0)
    if not (b.isfinite().all() and a.isfinite().all()):
        raise NonFiniteError(f"values exceed the range of {dtypes[0]} or {dtypes[1]}")
    return Rescaled(result, squared_distance(update, result))


def _times(tensor: Tensor, ratio: float, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Return ``tensor * ratio`` in ``dtype`` and whether that is exact."""
    if ratio == 1.0 and tensor.dtype == dtype:
        return tensor, True
    product = tensor.double() * ratio
    rounded = product.to(dtype)
    return rounded, bool(torch.equal(rounded.double(), product))
