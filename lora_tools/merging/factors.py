"""The factors of a patch as matrices that the host multiplies, the scale in the left one."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.architectures.rows import taken
from lora_tools.errors import NonFiniteError, some
from lora_tools.formats.finite import not_finite, sound
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Convolution
from lora_tools.linalg.range import check_measurable
from lora_tools.merging.tensor_plan import Patch
from lora_tools.shapes import Float
from lora_tools.update import Array, Biased, DoRA, LowRank, Update, factors

Matrix = Float[np.ndarray, "m n"]


class RowUpdate(NamedTuple):
    """``left @ right`` is added to rows of a weight; DoRA's magnitude goes with it."""

    left: Matrix
    right: Matrix
    magnitude: Float[np.ndarray, "n"] | None = None


def load(patch: Patch, updates: dict[tuple[int, str], Update]) -> RowUpdate:
    """Return a patch's factors in float64; ``updates`` keeps what has been read.

    Raises `NonFiniteError` if they hold NaN or Inf.
    """
    module, piece = patch.module, patch.piece
    known = (id(patch.adapter), module.name)
    if known not in updates:
        updates[known] = patch.adapter.format.update(module, patch.adapter.tensors.numbers)
    update = updates[known]
    low = factors(update)
    scale = low.scale * patch.weight
    check_strength(patch, low, scale)
    if patch.bias:
        assert isinstance(update, Biased)
        return RowUpdate(scale * taken(wide(update.bias), piece.rows)[:, None], np.ones((1, 1)))
    b, a = (wide(x[piece.part] if x.ndim == 3 else x) for x in (low.b, low.a))
    for name, factor in (("b", b), ("a", a)):
        if not np.isfinite(factor).all():
            keys = {str(role): part.key for role, part in module.parts.items()}
            key = keys.get(name) or some(keys.values())
            raise NonFiniteError(f"{patch.adapter.tensors.path}: {key}: NaN or Inf")
    try:
        check_measurable(float(np.abs(b).max(initial=0.0)), scale)
    except NonFiniteError as error:
        where = f"{patch.adapter.tensors.path}: {module.name}: B times its scale"
        raise NonFiniteError(f"{where}: {error}") from error
    b = b * scale
    if isinstance(module.site, Convolution) and module.site.groups > 1:
        own = patch.width
        a = a.reshape(len(a), module.site.groups, own)[:, piece.part]
    if not sound(update):
        raise not_finite(patch.adapter.tensors.path, module, update, "")
    magnitude = wide(update.magnitude).reshape(-1) if isinstance(update, DoRA) else None
    left, right = (a.T, b.T) if piece.transposed else (b, a)
    return RowUpdate(taken(left, piece.rows), right, magnitude)


def check_strength(patch: Patch, low: LowRank, scale: float) -> None:
    """Raise `NonFiniteError` for a strength that is no number, or that is lost to float64."""
    if math.isfinite(scale) and (scale or not (low.alpha != 0 and patch.weight)):
        return
    raise NonFiniteError(
        f"{patch.adapter.tensors.path}: {patch.module.name}: alpha {low.alpha} at rank {low.rank},"
        f" times {patch.weight:g}, is no strength that float64 can hold"
    )


def dense_factors(adapter: Adapter, module: Module, index: int) -> tuple[Matrix, Matrix]:
    """Return B and A of one update of a stack, in float64 and without the scale."""
    low = factors(adapter.format.update(module, adapter.tensors.numbers))
    return wide(low.b[index]), wide(low.a[index])


def wide(array: Array) -> np.ndarray:
    """Return an array of numpy or torch in float64, on the host."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    result: np.ndarray = array.detach().cpu().double().numpy()
    return result


def side_by_side(loaded: Mapping[int, RowUpdate]) -> RowUpdate:
    """Join updates of the same rows into one: the sum of products is a product."""
    parts = list(loaded.values())
    if len(parts) == 1:
        return parts[0]
    return RowUpdate(
        np.concatenate([part.left for part in parts], 1),
        np.concatenate([part.right for part in parts], 0),
    )
