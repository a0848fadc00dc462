"""Rules that see each element of the weighted updates, one array of one shape for each adapter."""

from collections.abc import Sequence

import numpy as np

from lora_tools.shapes import Float

Tile = np.ndarray
"""One weighted update, dense in float64, or whatever coordinates stand for it."""


def ties(tiles: Sequence[Float[Tile, "..."]], *, density: float = 0.2) -> Float[Tile, "..."]:
    """Trim each update to its largest elements, elect a sign for each element, and average those.

    TIES (Yadav et al. 2023, arXiv 2306.01708, section 3): the share ``density`` of each update
    stays; the sign is that of the sum; the mean is over the updates that have it.

    >>> ties([np.array([4.0, -1.0, 3.0]), np.array([2.0, 5.0, -1.0])], density=0.7)
    array([3., 5., 3.])
    """
    return _elected([_trimmed(tile, density) for tile in tiles])


def magnitude(tiles: Sequence[Float[Tile, "..."]], *, density: float = 0.5) -> Float[Tile, "..."]:
    """Trim each update to its largest elements, and add them.

    Pruning by magnitude, as PEFT's ``magnitude_prune``: the first step of TIES alone.

    >>> magnitude([np.array([4.0, -1.0]), np.array([2.0, 5.0])])
    array([4., 5.])
    """
    total: np.ndarray = np.sum([_trimmed(tile, density) for tile in tiles], axis=0)
    return total


def dare(
    tiles: Sequence[Float[Tile, "..."]], *, density: float = 0.5, seed: int = 0
) -> Float[Tile, "..."]:
    """Keep a random share of each update's elements, rescale them, and add them.

    DARE (Yu et al. 2023, arXiv 2311.03099): each element stays with probability ``density`` and is
    divided by it, so that the expectation is the sum. Adapters draw one after the other.

    >>> dare([np.ones(4)], density=1.0)
    array([1., 1., 1., 1.])
    """
    total: np.ndarray = np.sum(_dropped(tiles, density, seed), axis=0)
    return total


def dare_ties(
    tiles: Sequence[Float[Tile, "..."]], *, density: float = 0.5, seed: int = 0
) -> Float[Tile, "..."]:
    """Keep a random share of each update's elements, rescale them, elect signs, and average.

    DARE in the place of TIES' trimming (arXiv 2311.03099, section 3.3).

    >>> dare_ties([np.array([2.0, 1.0]), np.array([4.0, -3.0])], density=1.0)
    array([ 3., -3.])
    """
    return _elected(_dropped(tiles, density, seed))


def _trimmed(tile: Float[Tile, "..."], density: float) -> Float[Tile, "..."]:
    """Return an update with zeros in place of all but its largest elements."""
    kept = max(int(density * tile.size), 1)
    sizes = np.abs(tile)
    least = np.partition(sizes.reshape(-1), tile.size - kept)[tile.size - kept]
    return np.where(sizes >= least, tile, 0.0)


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
    tiles: Sequence[Float[Tile, "..."]], density: float, seed: int
) -> list[Float[Tile, "..."]]:
    draw = np.random.default_rng(seed)
    return [np.where(draw.random(tile.shape) < density, tile / density, 0.0) for tile in tiles]
