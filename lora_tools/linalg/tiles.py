"""Dense updates by rows, formed a tile at a time, so that memory need not hold several of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float

TILE = 1 << 20
"""Elements of an update that are formed at a time."""
DOUBLE = 1 << 22
"""Elements up to which a whole result is kept in float64; above it float32 holds it."""
BUCKET = 43
"""Bits of a float64 that do not tell its bucket: all but the exponent and nine digits."""


class Tiled(NamedTuple):
    """An update of which some rows are formed when they are asked for, the same at each time."""

    shape: tuple[int, int]
    rows: Callable[[int, int], Float[np.ndarray, "m n"]]
    """From the first row up to the last, in float64."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The rows of each tile."""
        height, width = self.shape
        step = max(TILE // max(width, 1), 1)
        return [(start, min(start + step, height)) for start in range(0, height, step)]


class Formed(NamedTuple):
    """A dense matrix, and its squared norm, summed in float64 before it was stored."""

    array: Float[np.ndarray, "m n"]
    squared: float


def product(b: Float[np.ndarray, "m r"], a: Float[np.ndarray, "r n"]) -> Tiled:
    """Return ``b @ a`` by rows."""

    def rows(start: int, stop: int) -> Float[np.ndarray, "m n"]:
        part: np.ndarray = b[start:stop] @ a
        return part

    return Tiled((b.shape[0], a.shape[1]), rows)


def normalised(
    change: Tiled,
    weight: Float[np.ndarray, "m n"],
    magnitude: Float[np.ndarray, " m"],
    factor: float,
) -> Tiled:
    """Return ``factor`` times what DoRA adds to a weight, by rows.

    ``magnitude * (weight + change) / ||weight + change|| - weight``, the norms those of rows
    (Liu et al. 2024, arXiv 2402.09353, equation 5).
    """

    def rows(start: int, stop: int) -> Float[np.ndarray, "m n"]:
        before = weight[start:stop].astype(np.float64)
        total = before + change.rows(start, stop)
        total *= (magnitude[start:stop] / np.linalg.norm(total, axis=1))[:, None]
        total -= before
        total *= factor
        added: np.ndarray = total
        return added

    return Tiled(change.shape, rows)


def formed(tiles: Iterable[Float[np.ndarray, "m n"]], shape: tuple[int, int]) -> Formed:
    """Put tiles one under the other: in float32, or in float64 where the whole is small."""
    array = np.empty(shape, np.float64 if shape[0] * shape[1] <= DOUBLE else np.float32)
    start, squared = 0, 0.0
    for tile in tiles:
        array[start : start + len(tile)] = tile
        squared += float(np.vdot(tile, tile))
        start += len(tile)
    return Formed(array, squared)


def inner_products(updates: Sequence[Tiled]) -> Float[Small, "k k"]:
    """Return the inner products of updates of one shape. Forms each of them once."""
    total = np.zeros((len(updates), len(updates)))
    for span in updates[0].spans:
        flat = np.stack([update.rows(*span).reshape(-1) for update in updates])
        total += flat @ flat.T
    return total


def least_kept(update: Tiled, count: int) -> float:
    """Return the size of the element below which all but the ``count`` largest are; exact.

    Forms the update twice: once to count how many elements have which exponent and leading digits,
    once for those among which the element is.

    >>> least_kept(product(np.array([[3.0], [-5.0]]), np.array([[1.0, 2.0]])), 2)
    6.0
    """
    if len(update.spans) == 1:
        sizes = np.abs(update.rows(*update.spans[0])).reshape(-1)
        return float(np.partition(sizes, sizes.size - count)[sizes.size - count])
    counts = np.zeros(1 << (63 - BUCKET), np.int64)
    for _, buckets in _bucketed(update):
        counts += np.bincount(buckets, minlength=len(counts))
    from_above = np.cumsum(counts[::-1])
    bucket = len(counts) - 1 - int(np.argmax(from_above >= count))
    left = count - int(counts[bucket + 1 :].sum())
    few = np.concatenate([sizes[buckets == bucket] for sizes, buckets in _bucketed(update)])
    return float(np.partition(few, few.size - left)[few.size - left])


def _bucketed(update: Tiled) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for span in update.spans:
        sizes = np.abs(update.rows(*span)).reshape(-1)
        yield sizes, (sizes.view(np.uint64) >> np.uint64(BUCKET)).astype(np.int64)
