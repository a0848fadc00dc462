"""The difference of two stored tensors, made in blocks that never leave the cache."""

from typing import NamedTuple

import numpy as np

from lora_tools.base import Base, Rows, Weight
from lora_tools.errors import NonFiniteError
from lora_tools.linalg.range import LEAST, MOST
from lora_tools.shapes import Float
from lora_tools.verbs.extract.pairs import WeightPair

BLOCK = 1 << 19
"""Elements that are read, widened and subtracted at a time."""


class Delta(NamedTuple):
    """What fine-tuning added to a weight."""

    array: Float[np.ndarray, "rows columns"]
    """All matrices of a stack below one another; float32, or float64 for float64 checkpoints."""
    squared: float
    """‖ΔW‖², summed in float64."""
    base_squared: float
    """‖W‖² of the base."""


def difference(
    base: Base, tuned: Base, pair: WeightPair, *, common: int | None = None
) -> Delta | None:
    """Read both sides of a weight and subtract, in the base's layout; None if they are equal.

    Equality of stored weights is found out by comparing bytes, before any arithmetic. With
    ``common`` only that many rows are compared, those that both sides have. Raises
    `NonFiniteError` naming the side that holds NaN or Inf.
    """
    stored = [*pair.base.weights(base), *pair.tuned.weights(tuned)]
    kind = np.float64 if "F64" in (weight.spec.dtype for weight in stored) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if pair.base.is_whole and pair.tuned.is_whole:
            found = _subtracted(base, tuned, pair, kind, common)
        else:
            found = _assembled(base, tuned, pair, kind)
    if found is None:
        return None
    delta, squared, base_squared = found
    if not (np.isfinite(squared) and np.isfinite(base_squared)):
        raise _not_finite(base, tuned, pair)
    if not squared and not delta.any():
        return None  # 0 and -0, or other bytes of the same numbers
    for whole in (squared, base_squared if base_squared else 1.0):
        if not LEAST**2 <= whole <= MOST**2:
            raise NonFiniteError(
                f"{tuned.path}: {pair.tuned.key} and its base: the norm of one, or of what was"
                f" added, has no square in float64"
            ).hint("Pass --skip-bad to leave it out.")
    return found


def _subtracted(
    base: Base, tuned: Base, pair: WeightPair, kind: type[np.floating], common: int | None
) -> Delta | None:
    """Subtract two stored weights of one layout, block by block; None if their bytes are equal."""
    rows, columns = _matrix(pair, common)
    step = max(BLOCK // max(columns, 1), 1)
    spans = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    weights = base[pair.base.key], tuned[pair.tuned.key]
    with Rows(weights[0], columns) as old, Rows(weights[1], columns) as new:
        same = _bytes_tell(*weights)
        if same and all(np.array_equal(old.raw(*span), new.raw(*span)) for span in spans):
            return None
        delta = np.empty((rows, columns), kind)
        before = np.empty(min(step, rows) * columns, delta.dtype)
        squared = base_squared = 0.0
        for start, stop in spans:
            block, under = delta[start:stop].reshape(-1), before[: (stop - start) * columns]
            old.decode(old.raw(start, stop), start, stop, under)
            new.decode(new.raw(start, stop), start, stop, block)
            block -= under
            squared += _squared(block)
            base_squared += _squared(under)
    return Delta(delta, squared, base_squared)


def _assembled(base: Base, tuned: Base, pair: WeightPair, kind: type[np.floating]) -> Delta:
    """Subtract weights of which one side lies in rows of others."""
    delta = np.zeros(_matrix(pair, None), kind)
    flat, base_squared = delta.reshape(-1), 0.0
    for numbers, place in pair.tuned.blocks(tuned, flat):
        place += numbers
    for numbers, place in pair.base.blocks(base, flat):
        place -= numbers
        base_squared += _squared(numbers)
    return Delta(delta, sum(map(_squared, delta)), base_squared)


def _matrix(pair: WeightPair, common: int | None) -> tuple[int, int]:
    if pair.place is None:
        return (1, pair.spec.numel) if common is None else (common, 1)
    rows = pair.place.stack * pair.place.rows
    return (rows if common is None else common), pair.place.columns


def _squared(block: Float[np.ndarray, "..."]) -> float:
    wide = block.astype(np.float64).reshape(-1)
    return float(np.dot(wide, wide))


def _not_finite(base: Base, tuned: Base, pair: WeightPair) -> NonFiniteError:
    bad = [
        f"{side.path}: {key}"
        for side, view in ((base, pair.base), (tuned, pair.tuned))
        for key in view.keys
        if not _is_finite(side[key])
    ]
    where = " and ".join(bad[:2]) or f"{tuned.path}: {pair.tuned.key}"
    what = "holds NaN or Inf" if bad else "differs from the base by more than float32 can hold"
    return NonFiniteError(f"{where} {what}").hint("Pass --skip-bad to leave it out.")


def _bytes_tell(one: Weight, other: Weight) -> bool:
    """Whether the same bytes mean the same numbers."""
    alike = type(one.codec) is type(other.codec) and one.spec.dtype == other.spec.dtype
    return alike and one.whole and other.whole


def _is_finite(weight: Weight) -> bool:
    shape = weight.spec.shape
    rows = shape[0] if shape else 1
    columns = weight.spec.numel // max(rows, 1)
    step = max(BLOCK // max(columns, 1), 1)
    with Rows(weight, columns) as reader:
        starts = range(0, rows, step)
        return all(np.isfinite(reader.wide(at, min(at + step, rows))).all() for at in starts)
