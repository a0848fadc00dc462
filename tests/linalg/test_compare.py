import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.compare import compare
from lora_tools.update import LowRank


def make(seed: int, out: int, inp: int, rank: int, stack: tuple[int, ...] = ()) -> LowRank:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((*stack, rank, inp)), rng.standard_normal((*stack, out, rank))
    return LowRank(a, b, alpha=2.0 * rank)


def dense(update: LowRank) -> np.ndarray:
    return np.asarray(update.dense("float64"))


def angles(x: np.ndarray, y: np.ndarray, rank_x: int, rank_y: int) -> np.ndarray:
    """Angles by cosines alone, of the column spaces of dense matrices."""
    u = np.linalg.svd(x)[0][:, :rank_x]
    v = np.linalg.svd(y)[0][:, :rank_y]
    return np.arccos(np.linalg.svd(u.T @ v, compute_uv=False).clip(max=1))


sizes = st.integers(1, 24)
ranks = st.integers(1, 8)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), sizes, sizes, ranks, ranks, st.sampled_from([(), (3,)]))
def test_every_figure_is_that_of_the_dense_matrices(seed, out, inp, r_x, r_y, stack):
    x, y = make(seed, out, inp, r_x, stack), make(seed + 1, out, inp, r_y, stack)
    p, q = dense(x), dense(y)
    found = compare(x, y)
    assert found.norms == pytest.approx((np.linalg.norm(p), np.linalg.norm(q)))
    scale = found.norms[0] * found.norms[1]
    assert found.inner == pytest.approx((p * q).sum(), abs=1e-9 * scale)
    assert found.difference == pytest.approx(np.linalg.norm(p - q), abs=1e-9 * found.norms[0])
    c = (p * q).sum() / (p * p).sum()
    assert found.residual == pytest.approx(np.linalg.norm(q - c * p), abs=1e-9 * found.norms[1])
    values = np.linalg.svd(p, compute_uv=False)
    assert found.tails[0] == pytest.approx(np.linalg.norm(values[..., r_y:]), abs=1e-9 * scale)
    limit = min(out, inp)
    assert found.ranks == (min(r_x, limit), min(r_y, limit))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), ranks, ranks)
def test_angles_are_those_of_the_dense_matrices(seed, r_x, r_y):
    x, y = make(seed, 30, 40, r_x), make(seed + 1, 30, 40, r_y)
    found = compare(x, y)
    assert found.columns.angles == pytest.approx(angles(dense(x), dense(y), r_x, r_y), abs=1e-6)
    assert found.rows.angles == pytest.approx(angles(dense(x).T, dense(y).T, r_x, r_y), abs=1e-6)


def test_a_stack_lists_the_angles_of_all_its_members():
    x, y = make(0, 20, 30, 3, (4,)), make(1, 20, 30, 2, (4,))
    wanted = [
        angle
        for i in range(4)
        for angle in compare(
            LowRank(x.a[i], x.b[i], x.alpha), LowRank(y.a[i], y.b[i], y.alpha)
        ).columns.angles
    ]
    assert compare(x, y).columns.angles == pytest.approx(sorted(wanted))


def test_equal_numbers_differ_by_exactly_nothing():
    x, y = make(7, 40, 50, 6), make(7, 40, 50, 6)
    found = compare(x, y)
    assert (found.difference, found.residual, found.noise) == (0, 0, 0)
    assert found.columns.angles == found.rows.angles == (0.0,) * 6
    assert found.norms[0] == pytest.approx(np.linalg.norm(dense(x)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_other_factors_of_the_same_update_differ_at_rounding_level(seed, rank):
    x = make(seed, 60, 50, rank)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((rank, rank)))[0]
    g = q * np.linspace(1, 10, rank)
    y = LowRank(np.linalg.inv(g) @ x.a, x.b @ g, alpha=x.alpha)
    found = compare(x, y)
    assert found.difference <= 1e-14 * rank * found.norms[0]
    assert found.difference <= 4 * found.noise
    assert max(*found.columns.angles, *found.rows.angles) < 1e-11


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-14, -1))
def test_a_small_difference_keeps_its_digits(seed, exponent):
    x, y = make(seed, 60, 50, 4), make(seed + 1, 60, 50, 2)
    size = 10.0**exponent
    both = LowRank(np.vstack([x.a, y.a]), np.hstack([x.b * x.scale, y.b * size]), alpha=6.0)
    wanted = size * np.linalg.norm(y.b @ y.a)
    found = compare(x, both)
    assert found.difference == pytest.approx(wanted, rel=1e-6, abs=found.noise)
    assert found.noise < 1e-12 * found.norms[0]


@pytest.mark.parametrize("factor", [0.5, 1.7, -3.0, 1 + 1e-9])
def test_a_scaled_copy_has_the_difference_of_its_factor(factor):
    x = make(5, 40, 50, 6)
    found = compare(x, LowRank(x.a, x.b, alpha=x.alpha * factor))
    assert found.difference / found.norms[0] == pytest.approx(abs(1 - factor), rel=1e-5)
    assert found.inner / math.prod(found.norms) == pytest.approx(math.copysign(1, factor))
    assert found.residual < 1e-13 * found.norms[1]
    assert max(found.columns.angles) < 1e-12


def test_orthogonal_updates():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 8)))[0]
    x = LowRank(basis[:, :4].T.copy(), basis[:, :4].copy(), alpha=4.0)
    y = LowRank(basis[:, 4:].T.copy(), basis[:, 4:].copy(), alpha=4.0)
    found = compare(x, y)
    assert found.inner == pytest.approx(0, abs=1e-14)
    assert found.difference == pytest.approx(math.sqrt(8))
    assert found.columns.angles == pytest.approx([math.pi / 2] * 4)
    # Norms of orthonormal columns that went through products: right to a few roundings, not exact.
    assert found.columns.new == pytest.approx(1, rel=1e-12)
    assert found.rows.lost == pytest.approx(1, rel=1e-12)


def test_a_truncation_has_no_new_directions_and_the_least_error():
    x = make(2, 40, 30, 6)
    u, s, vt = np.linalg.svd(dense(x), full_matrices=False)
    y = LowRank(vt[:2], u[:, :2] * s[:2], alpha=None)
    found = compare(x, y)
    assert found.difference == pytest.approx(np.linalg.norm(s[2:]))
    assert found.tails[0] == pytest.approx(found.difference)
    assert found.columns.new < 1e-13
    assert found.columns.lost == pytest.approx(found.difference / found.norms[0])
    assert max(found.columns.angles) < 1e-12


def test_zero_and_dead_directions():
    x = make(2, 40, 30, 6)
    zero = LowRank(x.a, np.zeros_like(x.b), alpha=1.0)
    found = compare(x, zero)
    assert found.ranks == (6, 0)
    assert found.difference == pytest.approx(found.norms[0])
    assert found.columns.angles == ()
    assert compare(zero, LowRank(2 * x.a, zero.b, alpha=1.0)).difference == 0
    padded = LowRank(np.vstack([x.a, x.a[:2]]), np.hstack([x.b, 0 * x.b[:, :2]]), alpha=16.0)
    found = compare(x, padded)
    assert found.ranks == (6, 6)
    assert found.difference <= found.noise


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_of_torch_agree_with_arrays_of_numpy(kind):
    x, y = make(0, 40, 30, 4), make(1, 40, 30, 3)
    tensors = [
        LowRank(torch.from_numpy(z.a).to(kind), torch.from_numpy(z.b).to(kind), z.alpha)
        for z in (x, y)
    ]
    arrays = [LowRank(z.a.double().numpy(), z.b.double().numpy(), z.alpha) for z in tensors]
    wanted = compare(*arrays)
    for pair in (tensors, (tensors[0], arrays[1]), (arrays[0], tensors[1])):
        found = compare(*pair)
        assert found.difference == pytest.approx(wanted.difference, rel=1e-12)
        assert found.columns.angles == pytest.approx(wanted.columns.angles, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(bad):
    x, y = make(0, 20, 30, 3), make(1, 20, 30, 3)
    y.b[4, 1] = bad
    for pair in ((x, y), (y, x), (y, y)):
        with pytest.raises(NonFiniteError):
            compare(*pair)


def test_products_beyond_float64_are_refused():
    x = LowRank(np.full((1, 3), 1e200), np.full((3, 1), 1e200), alpha=1.0)
    with pytest.raises(NonFiniteError):
        compare(x, LowRank(x.a, 2 * x.b, alpha=1.0))
