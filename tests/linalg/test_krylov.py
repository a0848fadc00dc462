"""Leading singular values against full decompositions, over spectra of every kind."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.linalg.krylov import Precision, full, leading
from lora_tools.linalg.operator import HostOperator

TRY = Precision(small=48)


def spectrum(kind: str, size: int) -> np.ndarray:
    i = np.arange(1, size + 1)
    match kind:
        case "flat":
            return np.ones(size)
        case "slow":
            return i**-0.25
        case "power":
            return i**-0.7
        case "fast":
            return i**-2.0
        case "exponential":
            return np.exp(-i / 10)
        case "steps":
            return np.select([i < 9, i < 30], [3.0, 1.0], 0.1)
        case "low rank":
            return np.where(i <= 6, 1.0 / i, 0.0)
        case _:  # low rank and a floor of noise
            return np.where(i <= 6, 10.0 / i, 0.05 + 0.1 * (size - i) / size)


KINDS = ("flat", "slow", "power", "fast", "exponential", "steps", "low rank", "noise")


def matrix(kind: str, m: int, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = min(m, n)
    u = np.linalg.qr(rng.standard_normal((m, size)))[0]
    v = np.linalg.qr(rng.standard_normal((n, size)))[0]
    return (u * spectrum(kind, size) @ v.T).astype(np.float32)


def hold(d: np.ndarray, rank: int, found, tolerance: float, ranks) -> None:
    """Compare what was found with a full decomposition in float64."""
    squares = np.linalg.svd(d.astype(np.float64), compute_uv=False) ** 2
    whole = squares.sum()
    for r in ranks:
        optimum = math.sqrt(squares[r:].sum() / whole)
        error = math.sqrt(max(1 - found.squares[:r].sum() / whole, 0))
        bound = math.sqrt(max(1 - found.reach[r] / whole, 0))
        assert bound <= optimum * (1 + 1e-9) + 1e-7
        assert error >= optimum * (1 - 1e-6) - 1e-6
        assert error <= bound * (1 + tolerance) + 2e-6


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(50, 160),
    n=st.integers(50, 160),
    rank=st.integers(1, 24),
    seed=st.integers(0, 2**20),
    every=st.booleans(),
)
def test_the_bound_is_never_above_the_optimum_nor_far_below_the_error(
    kind, m, n, rank, seed, every
):
    d = matrix(kind, m, n, seed)
    found = leading(HostOperator(d), rank, TRY, str(seed), every=every)
    rank = min(rank, m, n)
    hold(d, rank, found, TRY.tolerance, range(1, rank + 1) if every else (rank,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(700, 900), (900, 600)])
def test_matrices_that_are_large_enough_for_krylov(kind, shape):
    d = matrix(kind, *shape, seed=1)
    found = leading(HostOperator(d), 12, Precision(), kind)
    hold(d, 12, found, 1e-3, (12,))
    if kind in ("power", "fast", "exponential"):
        assert found.method.startswith("krylov")
    if kind in ("fast", "low rank"):
        assert found.method != "krylov float32"  # its rounding would hide what is left


def test_vectors_reach_the_error_that_is_reported():
    d = matrix("power", 700, 900, seed=2)
    found = leading(HostOperator(d), 12, Precision(), "x")
    v = np.asarray(found.vectors, np.float64)
    rest = d - d @ v.T @ v
    assert found.side == "right"
    whole = float(np.linalg.norm(d.astype(np.float64)) ** 2)
    left = whole - found.squares.sum()
    # Float32 sums of 900 products: each kernel rounds them in an order of its own.
    assert np.linalg.norm(rest) ** 2 == pytest.approx(left, abs=1e-5 * whole)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
def test_the_full_path_is_exact(shape):
    d = matrix("slow", *shape, seed=3)
    found = full(HostOperator(d), 7)
    squares = np.linalg.svd(d.astype(np.float64), compute_uv=False) ** 2
    assert found.squares == pytest.approx(squares[:7], rel=1e-10)
    assert found.side == ("left" if shape[0] < shape[1] else "right")


def test_random_numbers_depend_on_the_name_alone():
    operator = HostOperator(matrix("power", 700, 900, seed=4))
    x, y, z = (leading(operator, 8, Precision(), name) for name in ("a", "a", "b"))
    assert np.array_equal(x.vectors, y.vectors)
    assert not np.array_equal(x.vectors, z.vectors)


def test_exact_asks_for_the_full_path():
    operator = HostOperator(matrix("power", 700, 900, seed=5))
    assert leading(operator, 8, Precision(exact=True)).method == "gram"
