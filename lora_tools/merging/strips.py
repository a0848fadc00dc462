"""Strips: a tensor's rows with what is added to them, in pieces that stay in a cache."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lora_tools.architectures.rows import taken
from lora_tools.base import Rows
from lora_tools.errors import NonFiniteError
from lora_tools.linalg.apply import Gain, column_norms, narrowed
from lora_tools.merging.factors import RowUpdate, load, side_by_side, wide
from lora_tools.merging.tensor_plan import Patch, TensorPlan
from lora_tools.shapes import Float
from lora_tools.update import Update

STRIP = 1 << 18
"""Elements of a strip: with its copies it stays in the second or third level of a cache."""


class Strip(NamedTuple):
    """Some rows of a tensor: their bytes, good until the next strip, and what is added."""

    first: int
    last: int
    raw: np.ndarray
    rows: Rows
    left: Float[np.ndarray, "m r"] | None
    right: Float[np.ndarray, "r k"] | None
    gain: Gain | None

    def decode(self, out: Float[np.ndarray, "n"]) -> None:
        """Fill ``out``, float32 or float64, with the numbers that the bytes stand for."""
        self.rows.decode(self.raw, self.first, self.last, out)


def height(entry: TensorPlan) -> int:
    """Return the rows of a strip."""
    return max(1, STRIP // max(entry.table[1], 1))


def strips(
    entry: TensorPlan, rows: tuple[int, int], kind: type[np.floating[Any]]
) -> Iterator[Strip]:
    """Yield rows of an entry in order, with factors of type ``kind``, or float64 if they need it.

    Raises `NonFiniteError` if a factor holds NaN or Inf, or its update has no square in float64.
    """
    step, updates = height(entry), dict[tuple[int, str], Update]()
    with Rows(entry.source.weight, entry.table[1]) as source:
        for first, last, patches in bands(entry, rows):
            joined, gain = _joined(entry, patches, (first, last), updates)
            left = right = None
            if joined:
                try:
                    left, right = narrowed(joined.left, joined.right, kind)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{entry.key}: its update: {error}") from error
            for low in range(first, last, step):
                high = min(low + step, last)
                part = None if left is None else left[low - first : high - first]
                its = gain
                if gain and not gain.columns:
                    its = Gain(gain.magnitude[low - first : high - first], columns=False)
                yield Strip(low, high, source.raw(low, high), source, part, right, its)


def bands(entry: TensorPlan, rows: tuple[int, int]) -> Iterator[tuple[int, int, tuple[Patch, ...]]]:
    """Yield ranges of rows that the same patches change."""
    first, last = rows
    edges = {first, last}
    for patch in entry.patches:
        edges |= {edge for edge in (patch.piece.start, patch.stop) if first < edge < last}
    for low, high in pairwise(sorted(edges)):
        yield (
            low,
            high,
            tuple(
                patch for patch in entry.patches if patch.piece.start <= low and high <= patch.stop
            ),
        )


def tokens(
    entry: TensorPlan, rows: tuple[int, int]
) -> Iterator[tuple[int, Float[np.ndarray, "k"]]]:
    """Yield the rows that adapters replace, by number and in float64."""
    for each in entry.tokens:
        values = wide(each.adapter.tensors.numbers[each.extra.key])
        for row, value in zip(each.rows, values, strict=True):
            if rows[0] <= row < rows[1]:
                yield row, value


def by_columns(entry: TensorPlan) -> bool:
    """Whether DoRA normalises the columns of what is stored, which takes all rows at once."""
    return any(patch.dora and patch.piece.transposed for patch in entry.patches)


def _joined(
    entry: TensorPlan,
    patches: tuple[Patch, ...],
    rows: tuple[int, int],
    updates: dict[tuple[int, str], Update],
) -> tuple[RowUpdate | None, Gain | None]:
    if not patches:
        return None, None
    parts = {}
    gain = None
    for number, patch in enumerate(patches):
        loaded = load(patch, updates)
        window = slice(rows[0] - patch.piece.start, rows[1] - patch.piece.start)
        if loaded.magnitude is not None:
            gain = (
                Gain(_column_factor(entry, loaded), columns=True)
                if patch.piece.transposed
                else Gain(taken(loaded.magnitude, patch.piece.rows)[window], columns=False)
            )
        parts[number] = loaded._replace(left=loaded.left[window])
    return side_by_side(parts), gain


def _column_factor(entry: TensorPlan, loaded: RowUpdate) -> Float[np.ndarray, "k"]:
    """Return what DoRA multiplies the columns of a transposed weight with; reads it once."""
    height_, width = entry.table
    total = np.zeros(width)
    step = height(entry)
    with Rows(entry.source.weight, width) as source:
        for low in range(0, height_, step):
            high = min(low + step, height_)
            total += column_norms(source.wide(low, high), loaded.left[low:high], loaded.right)
    assert loaded.magnitude is not None
    factor: Float[np.ndarray, k] = loaded.magnitude / np.sqrt(total)
    return factor
