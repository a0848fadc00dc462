"""Rules that see each element of the weighted updates: a tile of each adapter's in, a tile out.

What depends on a whole update is given with its tiles: ``least``, the size of the smallest element
of each update that stays, and ``draws``, where each draws its random numbers from, row after row.
Without them the tiles are taken for all there is.
"""

from collections.abc import Sequence

import numpy as np

from lora_tools.shapes import Float

Tile = np.ndarray
"""Rows of one weighted update, dense in float64, or whatever coordinates stand for it."""


def ties(
    tiles: Sequence[Float[Tile, "..."]],
    *,
    density: float = 0.2,
    least: Sequence[float] | None = None,
) -> Float[Tile, "..."]:
    """Trim each update to its largest elements, elect a sign for each element, and average those.

    TIES (Yadav et al. 2023, arXiv 2306.01708, section 3): the share ``density`` of each update
    stays; the sign is that of the sum; the mean is over the updates that have it.

    >>> ties([np.array([4.0, -1.0, 3.0]), np.array([2.0, 5.0, -1.0])], density=0.7)
    array([3., 5., 3.])
    """
    return _elected(_trimmed(tiles, density, least))


def magnitude(
    tiles: Sequence[Float[Tile, "..."]],
    *,
    density: float = 0.5,
    least: Sequence[float] | None = None,
) -> Float[Tile, "..."]:
    """Trim each update to its largest elements, and add them.

    Pruning by magnitude, as PEFT's ``magnitude_prune``: the first step of TIES alone.

    >>> magnitude([np.array([4.0, -1.0]), np.array([2.0, 5.0])])
    array([4., 5.])
    """
    total: np.ndarray = np.sum(_trimmed(tiles, density, least), axis=0)
    return total


def dare(
    tiles: Sequence[Float[Tile, "..."]],
    *,
    density: float = 0.5,
    draws: Sequence[np.random.Generator] | None = None,
) -> Float[Tile, "..."]:
    """Keep a random share of each update's elements, rescale them, and add them.

    DARE (Yu et al. 2023, arXiv 2311.03099): each element stays with probability ``density`` and is
    divided by it, so that the expectation is the sum. Each adapter draws for itself.

    >>> dare([np.ones(4)], density=1.0)
    array([1., 1., 1., 1.])
    """
    total: np.ndarray = np.sum(_dropped(tiles, density, draws), axis=0)
    return total


def dare_ties(
    tiles: Sequence[Float[Tile, "..."]],
    *,
    density: float = 0.5,
    draws: Sequence[np.random.Generator] | None = None,
) -> Float[Tile, "..."]:
    """Keep a random share of each update's elements, rescale them, elect signs, and average.

    DARE in the place of TIES' trimming (arXiv 2311.03099, section 3.3).

    >>> dare_ties([np.array([2.0, 1.0]), np.array([4.0, -3.0])], density=1.0)
    array([ 3., -3.])
    """
    return _elected(_dropped(tiles, density, draws))


def kept(size: int, density: float) -> int:
    """Return how many elements of an update stay.

    >>> kept(10, 0.25), kept(3, 0.1)
    (2, 1)
    """
    return max(int(density * size), 1)


def _trimmed(
    tiles: Sequence[Float[Tile, "..."]], density: float, least: Sequence[float] | None
) -> list[Float[Tile, "..."]]:
    """Return updates with zeros in place of all but their largest elements."""
    if least is None:
        least = [_least(np.abs(tile).reshape(-1), density) for tile in tiles]
    return [
        np.where(np.abs(tile) >= size, tile, 0.0) for tile, size in zip(tiles, least, strict=True)
    ]


def _least(sizes: Float[Tile, " n"], density: float) -> float:
    at = sizes.size - kept(sizes.size, density)
    return float(np.partition(sizes, at)[at])


def _elected(tiles: Sequence[Float[Tile, "..."]]) -> Float[Tile, "..."]:
    """Return the mean of those updates that have the sign of the sum, element by element."""
    sign = np.sign(np.sum(tiles, axis=0))
    count, total = np.zeros_like(tiles[0]), np.zeros_like(tiles[0])
    for tile in tiles:
        agrees = (np.sign(tile) == sign) & (tile != 0)
        count += agrees
        total += np.where(agrees, tile, 0.0)
    mean: np.ndarray = total / np.maximum(count, 1.0)
    return mean


def _dropped(
    tiles: Sequence[Float[Tile, "..."]],
    density: float,
    draws: Sequence[np.random.Generator] | None,
) -> list[Float[Tile, "..."]]:
    draws = draws or [np.random.default_rng([number]) for number in range(len(tiles))]
    return [
        np.where(draw.random(tile.shape) < density, tile / density, 0.0)
        for tile, draw in zip(tiles, draws, strict=True)
    ]
