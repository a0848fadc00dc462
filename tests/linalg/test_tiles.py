"""Tiles of dense updates against the whole of them."""

import numpy as np
import pytest

from lora_tools.linalg import tiles
from lora_tools.linalg.tiles import formed, inner_products, least_kept, normalised, product


@pytest.fixture(params=["one tile", "tiles of three rows"])
def some(request, monkeypatch):
    if request.param != "one tile":
        monkeypatch.setattr(tiles, "TILE", 3 * 9)
    rng = np.random.default_rng(0)
    factors = [(rng.standard_normal((11, 2)), rng.standard_normal((2, 9))) for _ in range(3)]
    return [product(b, a) for b, a in factors], [b @ a for b, a in factors]


def test_the_smallest_that_stays_is_exact(some):
    for update, whole in zip(*some, strict=True):
        sizes = np.sort(np.abs(whole), axis=None)[::-1]
        for count in (1, 2, 17, 50, whole.size):
            assert least_kept(update, count) == pytest.approx(sizes[count - 1], rel=1e-12)


@pytest.mark.parametrize("tile", [2, 1 << 20])
def test_equal_elements_and_zeros_are_counted(tile, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    update = product(np.array([[1.0], [0.0], [1.0], [-2.0]]), np.array([[1.0, 1.0]]))
    assert [least_kept(update, n) for n in range(1, 9)] == [2, 2, 1, 1, 1, 1, 0, 0]


def test_a_matrix_is_its_tiles(some):
    update, whole = some[0][0], some[1][0]
    found = formed((update.rows(*span) for span in update.spans), update.shape)
    np.testing.assert_allclose(found.array, whole, rtol=1e-12)
    assert found.squared == pytest.approx(np.square(whole).sum(), rel=1e-12)
    assert update.spans[0][1] in (3, 11)


def test_a_large_matrix_is_kept_in_float32(some, monkeypatch):
    monkeypatch.setattr(tiles, "DOUBLE", 10)
    update, whole = some[0][0], some[1][0]
    found = formed((update.rows(*span) for span in update.spans), update.shape)
    assert found.array.dtype == np.float32
    assert found.squared == pytest.approx(np.square(whole).sum(), rel=1e-12)


def test_inner_products(some):
    flat = np.stack([whole.reshape(-1) for whole in some[1]])
    np.testing.assert_allclose(inner_products(some[0]), flat @ flat.T, atol=1e-12)


def test_dora_is_the_difference_of_merged_weights(some):
    rng = np.random.default_rng(1)
    weight, magnitude = rng.standard_normal((11, 9)), rng.uniform(1, 2, 11)
    update = normalised(some[0][0], weight, magnitude, -0.5)
    total = weight + some[1][0]
    merged = magnitude[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    found = np.concatenate([update.rows(*span) for span in update.spans])
    np.testing.assert_allclose(found, -0.5 * (merged - weight), atol=1e-12)
