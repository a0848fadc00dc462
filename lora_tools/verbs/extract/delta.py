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
    """Read both sides of a weight and subtract; None if they are equal, bit for bit.

    Equality is found out by comparing bytes, before any arithmetic. With ``common`` only that
    many rows are compared, those that both sides have. Raises `NonFiniteError` naming the side
    that holds NaN or Inf.
    """
    rows, columns = _matrix(pair, common)
    step = max(BLOCK // max(columns, 1), 1)
    spans = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    weights = base[pair.base], tuned[pair.tuned]
    with Rows(weights[0], columns) as old, Rows(weights[1], columns) as new:
        same = _bytes_tell(*weights)
        if same and all(np.array_equal(old.raw(*span), new.raw(*span)) for span in spans):
            return None
        double = "F64" in (weight.spec.dtype for weight in weights)
        delta = np.empty((rows, columns), np.float64 if double else np.float32)
        before = np.empty(min(step, rows) * columns, delta.dtype)
        squared = base_squared = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            for start, stop in spans:
                block, under = delta[start:stop].reshape(-1), before[: (stop - start) * columns]
                old.decode(old.raw(start, stop), start, stop, under)
                new.decode(new.raw(start, stop), start, stop, block)
                block -= under
                squared += _squared(block)
                base_squared += _squared(under)
    if not (np.isfinite(squared) and np.isfinite(base_squared)):
        raise _not_finite(base, tuned, pair, columns, spans)
    if not squared and not delta.any():
        return None  # 0 and -0
    for whole in (squared, base_squared if base_squared else 1.0):
        if not LEAST**2 <= whole <= MOST**2:
            raise NonFiniteError(
                f"{tuned.path}: {pair.tuned} and its base: the norm of one, or of what was added,"
                f" has no square in float64"
            ).hint("Pass --skip-bad to leave it out.")
    return Delta(delta, squared, base_squared)


def _matrix(pair: WeightPair, common: int | None) -> tuple[int, int]:
    if pair.place is None:
        return (1, pair.spec.numel) if common is None else (common, 1)
    rows = pair.place.stack * pair.place.rows
    return (rows if common is None else common), pair.place.columns


def _squared(block: Float[np.ndarray, "..."]) -> float:
    wide = block.astype(np.float64).reshape(-1)
    return float(np.dot(wide, wide))


def _not_finite(
    base: Base, tuned: Base, pair: WeightPair, columns: int, spans: list[tuple[int, int]]
) -> NonFiniteError:
    bad = [
        f"{side.path}: {key}"
        for side, key in ((base, pair.base), (tuned, pair.tuned))
        if not _is_finite(side[key], columns, spans)
    ]
    where = " and ".join(bad) or f"{tuned.path}: {pair.tuned}"
    what = "holds NaN or Inf" if bad else "differs from the base by more than float32 can hold"
    return NonFiniteError(f"{where} {what}").hint("Pass --skip-bad to leave it out.")


def _bytes_tell(one: Weight, other: Weight) -> bool:
    """Whether the same bytes mean the same numbers."""
    alike = type(one.codec) is type(other.codec) and one.spec.dtype == other.spec.dtype
    return alike and one.whole and other.whole


def _is_finite(weight: Weight, columns: int, spans: list[tuple[int, int]]) -> bool:
    with Rows(weight, columns) as rows:
        return all(np.isfinite(rows.wide(*span)).all() for span in spans)
