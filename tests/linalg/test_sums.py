"""Sums of updates against dense float64 sums, and what is said of their summands."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.factors import factors_of, host
from lora_tools.linalg.sums import concatenated, contributions, is_rounding, weighted
from lora_tools.linalg.svd import core
from lora_tools.update import LowRank

OUT, INP = 7, 5


def update(seed, rank, alpha=None, *, stack=(), dtype="float32", rslora=False, groups=1):
    rng = np.random.default_rng(seed)
    b = rng.standard_normal((*stack, OUT, rank)).astype("float32")
    a = rng.standard_normal((*stack, rank, INP)).astype("float32")
    if dtype == "bfloat16":
        b, a = (torch.from_numpy(array).bfloat16() for array in (b, a))
    else:
        b, a = (array.astype(dtype) for array in (b, a))
    return LowRank(a, b, alpha, rslora, groups)


def dense(update):
    return update.scale * (host(update.b) @ host(update.a))


summands = st.builds(
    update,
    st.integers(0, 3),
    st.integers(1, 4),
    st.sampled_from([None, 1.0, 3.0, 16.0]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    rslora=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(summands, st.sampled_from([1.0, -1.0, 0.3, -2.0])), min_size=1, max_size=5)
)
def test_a_sum_is_the_dense_one(pairs):
    updates, weights = zip(*pairs, strict=True)
    total = concatenated(updates, weights)
    wanted = sum(w * dense(u) for u, w in pairs)
    size = sum(abs(w) * np.abs(dense(u)).max() for u, w in pairs)
    assert np.abs(dense(total) - wanted).max() <= 1e-13 * size


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("signs", [(1.0, 1.0), (1.0, -1.0), (-2.0, 2.0)])
def test_no_bit_changes_where_scales_are_equal_but_for_their_signs(signs, dtype):
    x, y = update(0, 2, 4.0, dtype=dtype), update(1, 3, 6.0, dtype=dtype)
    total = concatenated([x, y], signs)
    assert total.b.dtype == x.b.dtype
    assert (host(total.a) == np.vstack([host(x.a), host(y.a)])).all()
    ones = np.sign(signs)
    assert (host(total.b) == np.hstack([ones[0] * host(x.b), ones[1] * host(y.b)])).all()
    assert total.scale == pytest.approx(2.0 * abs(signs[0]), rel=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_adapter_many_times_is_itself(dtype):
    x = update(0, 3, 6.0, dtype=dtype)
    same = concatenated([x] * 10, [0.1] * 10)
    assert same.b is x.b
    assert same.a is x.a
    assert same.scale == x.scale
    gone = concatenated([x, x], [1.0, -1.0])
    assert gone.rank == 1
    assert not host(gone.b).any()


def test_the_same_numbers_in_another_dtype_are_the_same():
    x = update(0, 3, 6.0, dtype="float16")
    wide = LowRank(x.a.astype("float64"), x.b.astype("float64"), 6.0)
    assert not host(concatenated([x, wide], [1.0, -1.0]).b).any()


def test_a_weight_goes_to_alpha_and_its_sign_to_b():
    x = update(0, 2, None)
    y = weighted(x, -3.0)
    assert (y.b == -x.b).all()
    assert y.a is x.a
    assert y.alpha == 6.0
    assert weighted(x, 1.0) is x


def test_groups_share_the_rank():
    x = update(0, 2, 8.0, stack=(3,), groups=3)
    y = update(1, 1, 1.0, stack=(3,), groups=3)
    total = concatenated([x, y], [1.0, -1.0])
    assert total.b.shape == (3, OUT, 3)
    np.testing.assert_allclose(dense(total), dense(x) - dense(y), atol=1e-12)


def test_contributions_are_those_of_dense_matrices():
    x, y, z = update(0, 2, 4.0), update(1, 3, 1.0, rslora=True), update(2, 1)
    weights = [1.0, -0.5, 2.0]
    found = contributions([x, y, z], weights)
    flat = [w * dense(u).ravel() for u, w in zip((x, y, z), weights, strict=True)]
    np.testing.assert_allclose(found.inner, np.array(flat) @ np.array(flat).T, atol=1e-12)
    assert found.norms == pytest.approx([float(np.linalg.norm(each)) for each in flat])
    q, r = (np.linalg.qr(host(u.b))[0] for u in (x, y))
    angles = np.arccos(np.linalg.svd(q.T @ r, compute_uv=False))
    np.testing.assert_allclose(found.columns[0, 1], [angles.min(), angles.max()], atol=1e-7)
    q, r = (np.linalg.qr(host(u.a).T)[0] for u in (x, y))
    angles = np.arccos(np.linalg.svd(q.T @ r, compute_uv=False))
    np.testing.assert_allclose(found.rows[1, 0], [angles.min(), angles.max()], atol=1e-7)


def test_a_zero_summand_has_no_angles():
    x, y = update(0, 2), update(1, 2)
    found = contributions([x, LowRank(y.a, 0 * y.b, None)], [1.0, 1.0])
    assert math.isnan(found.columns[0, 1, 0])
    assert found.norms[1] == 0


def test_what_is_not_finite_is_refused():
    x, y = update(0, 2), update(1, 2)
    y.b[0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        contributions([x, y], [1.0, 1.0])


def test_what_rounding_leaves_of_a_difference_is_told_from_a_small_one():
    x = update(0, 3, 3.0, dtype="float64")
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
    same = LowRank(turn.T @ x.a, x.b @ turn, 3.0)
    near = LowRank(x.a, x.b * (1 + 1e-10), 3.0)
    for other, noise in ((same, True), (near, False)):
        total = concatenated([x, other], [1.0, -1.0])
        assert is_rounding(core(total).s, factors_of(total)) is noise
