"""The difference of two stored tensors, made in blocks that never leave the cache."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.files.dtypes import numpy_dtype
from lora_tools.linalg.range import LEAST, MOST
from lora_tools.linalg.stored import widened
from lora_tools.model import Model
from lora_tools.quantised import FLOAT8, Scaling, scaling_of, spread
from lora_tools.shapes import Float
from lora_tools.verbs.extract.pairs import Pair

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


@dataclass(frozen=True, slots=True)
class Side:
    """A tensor of one of the two models, read by rows."""

    model: Model
    key: str
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        """Its element type in the file."""
        return self.model.tensors.specs[self.key].dtype

    @property
    def scaling(self) -> Scaling | None:
        """What it is to be multiplied by."""
        return scaling_of(self.key, self.model)

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes of some rows."""
        width = self.model.tensors.specs[self.key].nbytes // max(self.shape[0], 1)
        return self.model.tensors.bytes_of(self.key, start * width, stop * width)

    def wide(self, raw: np.ndarray, start: int, stop: int) -> Float[np.ndarray, "rows columns"]:
        """Return those bytes as float32 numbers, or as float64 ones if they are."""
        shape = (stop - start, self.shape[1])
        if self.dtype in FLOAT8:
            numbers = _eight(raw, self.dtype).reshape(shape)
            numbers *= self._factor(start, stop)
            return numbers
        kind = "uint16" if self.dtype == "BF16" else numpy_dtype(self.dtype)
        return widened(raw.view(kind), self.dtype).reshape(shape)

    def _factor(self, start: int, stop: int) -> Float[np.ndarray, "..."]:
        """Return the scales of some rows."""
        if self.scaling is None:
            return np.ones((), np.float32)
        scale = self.model.tensors.arrays[self.scaling.key]
        if not isinstance(scale, np.ndarray):
            scale = scale.float().numpy()
        table = scale.astype(np.float32)
        return spread(table, self.scaling.block, (start, stop), self.shape[1])


def difference(base: Model, tuned: Model, pair: Pair, *, common: int | None = None) -> Delta | None:
    """Read both sides of a weight and subtract; None if they are equal, bit for bit.

    Equality is found out by comparing bytes, before any arithmetic. With ``common`` only that
    many rows are compared, those that both sides have. Raises `NonFiniteError` naming the side
    that holds NaN or Inf.
    """
    rows, columns = _matrix(pair, common)
    old, new = Side(base, pair.base, (rows, columns)), Side(tuned, pair.tuned, (rows, columns))
    if common is not None:
        full = pair.spec.shape[0], pair.tuned_spec.shape[0]
        old, new = (
            Side(s.model, s.key, (n, columns)) for s, n in zip((old, new), full, strict=True)
        )
    step = max(BLOCK // max(columns, 1), 1)
    spans = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    alike = old.dtype == new.dtype and old.scaling is None and new.scaling is None
    if alike and all(np.array_equal(old.raw(*span), new.raw(*span)) for span in spans):
        return None
    double = "F64" in (old.dtype, new.dtype)
    delta = np.empty((rows, columns), np.float64 if double else np.float32)
    squared = base_squared = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        for start, stop in spans:
            before = old.wide(old.raw(start, stop), start, stop)
            after = new.wide(new.raw(start, stop), start, stop)
            block = np.subtract(after, before, out=delta[start:stop])
            squared += _squared(block)
            base_squared += _squared(before)
    if not (np.isfinite(squared) and np.isfinite(base_squared)):
        raise _not_finite(old, new, spans)
    if not squared and not delta.any():
        return None  # 0 and -0
    for whole in (squared, base_squared if base_squared else 1.0):
        if not LEAST**2 <= whole <= MOST**2:
            raise NonFiniteError(
                f"{new.model.path}: {new.key} and its base: the norm of one, or of what was added,"
                f" has no square in float64"
            ).hint("Pass --skip-bad to go on without it.")
    return Delta(delta, squared, base_squared)


def _matrix(pair: Pair, common: int | None) -> tuple[int, int]:
    if pair.place is None:
        return (1, pair.spec.numel) if common is None else (common, 1)
    rows = pair.place.stack * pair.place.rows
    return (rows if common is None else common), pair.place.columns


def _squared(block: Float[np.ndarray, "..."]) -> float:
    wide = block.astype(np.float64).reshape(-1)
    return float(np.dot(wide, wide))


def _eight(raw: np.ndarray, code: str) -> Float[np.ndarray, " n"]:
    import torch  # numpy has no float8

    from lora_tools.files.dtypes import torch_dtype

    numbers: Float[np.ndarray, " n"] = torch.from_numpy(raw).view(torch_dtype(code)).float().numpy()
    return numbers


def _not_finite(old: Side, new: Side, spans: list[tuple[int, int]]) -> NonFiniteError:
    bad = [
        f"{side.model.path}: {side.key}"
        for side in (old, new)
        if not all(np.isfinite(side.wide(side.raw(*span), *span)).all() for span in spans)
    ]
    where = " and ".join(bad) or f"{new.model.path}: {new.key}"
    what = "holds NaN or Inf" if bad else "differs from the base by more than float32 can hold"
    return NonFiniteError(f"{where} {what}").hint("Pass --skip-bad to go on without it.")
