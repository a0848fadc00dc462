"""Updates of rows and of stacks of weights, against dense float64 matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.linalg.blocks import of_rows, sliced, stacked, upon
from lora_tools.linalg.spectrum import numerical_rank
from lora_tools.linalg.svd import core
from lora_tools.update import DoRA, LowRank, factors


def update(out, inp, rank, alpha=None, seed=0, dtype="float32"):
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((rank, inp)), draw.standard_normal((out, rank))
    if dtype == "bfloat16":
        return LowRank(torch.tensor(a).bfloat16(), torch.tensor(b).bfloat16(), alpha)
    return LowRank(a.astype(dtype), b.astype(dtype), alpha)


def dense(low):
    return np.asarray(torch.as_tensor(low.dense("float64")))


@settings(deadline=None, max_examples=50)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    alphas=st.lists(st.sampled_from([None, 1.0, 3.0, 0.7]), min_size=4, max_size=4),
    gaps=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    dtypes=st.lists(st.sampled_from(["float16", "float32", "bfloat16"]), min_size=4, max_size=4),
)
def test_a_stack_holds_each_update_in_its_rows(ranks, alphas, gaps, dtypes):
    parts, starts, at = [], [], 0
    for index, rank in enumerate(ranks):
        at += gaps[index]
        starts.append(at)
        parts.append(update(3 + index, 7, rank, alphas[index], index, dtypes[index]))
        at += 3 + index
    places = [(range(s, s + len(p.b)),) for p, s in zip(parts, starts, strict=True)]
    whole = stacked(parts, places, at + 1)
    assert whole.rank == sum(ranks)
    wanted = np.zeros((at + 1, 7))
    for part, start in zip(parts, starts, strict=True):
        wanted[start : start + len(part.b)] = dense(part)
    assert np.allclose(dense(whole), wanted, rtol=1e-12, atol=1e-12)
    for part, start in zip(parts, starts, strict=True):
        again = sliced(whole, (range(start, start + len(part.b)),))
        assert again.rank == part.rank
        assert np.allclose(dense(again), dense(part), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 3.0, 0.1, 7.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_stacked_and_sliced_again_is_the_same_to_the_last_bit(alpha, dtype):
    parts = [update(6, 7, 5, alpha, seed, dtype) for seed in range(3)]
    whole = stacked(parts, [(range(i, i + 6),) for i in (0, 6, 12)], 18)
    assert whole.b.dtype == parts[0].b.dtype
    for index, part in enumerate(parts):
        again = sliced(whole, (range(6 * index, 6 * index + 6),))
        assert bool((again.a == part.a).all())
        assert bool((again.b == part.b).all())
        assert again.alpha == part.alpha or again.alpha == pytest.approx(part.alpha, rel=2e-16)


def test_what_shares_its_a_shares_its_columns():
    first = update(6, 7, 3, 2.0)
    others = [LowRank(first.a, update(4, 7, 3, seed=s).b, 2.0) for s in (1, 2)]
    whole = stacked([first, *others], [(range(6),), (range(6, 10),), (range(10, 14),)], 14)
    assert whole.rank == 3
    assert whole.a is first.a
    assert np.array_equal(dense(whole), np.concatenate([dense(u) for u in (first, *others)]))


def test_a_rank_is_found_beneath_the_factors():
    first = update(30, 40, 4)
    mixed = np.random.default_rng(9).standard_normal((4, 4))
    rows = (mixed @ first.a.astype(np.float64)).astype(np.float64)
    second = LowRank(rows, update(30, 40, 4, seed=3).b.astype(np.float64), None)
    whole = stacked([first, second], [(range(30),), (range(30, 60),)], 60)
    assert whole.rank == 8
    found = core(whole, careful=True)
    assert numerical_rank(found.s) == 4
    values = np.linalg.svd(dense(whole), compute_uv=False)[:8]
    assert np.allclose(found.s, values, atol=1e-13 * values[0])


def test_columns_of_zeros_go_unless_all_are():
    low = update(6, 7, 3, 6.0)
    low.b[:, 1] = 0
    again = sliced(low, (range(2, 6), range(2)))
    assert (again.rank, again.scale) == (2, low.scale)
    wanted = dense(low)
    assert np.allclose(dense(again), np.concatenate([wanted[2:], wanted[:2]]), atol=1e-12)
    fresh = LowRank(low.a, np.zeros_like(low.b), 6.0)
    assert sliced(fresh, (range(3),)).rank == 3


def test_a_scale_of_zero_stays_one():
    low = update(4, 5, 2, 0.0)
    whole = stacked([low, update(4, 5, 2, 3.0, 1)], [(range(4),), (range(4, 8),)], 8)
    assert whole.scale == 1.5
    assert not dense(whole)[:4].any()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_rows_that_take_turns_are_put_and_taken_in_steps(library):
    """Queries, keys and values head by head, with the norms of their rows."""
    parts = [update(4, 7, 2, 2.0, seed) for seed in range(3)]
    norms = [np.arange(4.0) + 10 * index for index in range(3)]
    if library == "torch":
        parts = [LowRank(torch.tensor(p.a), torch.tensor(p.b), p.alpha) for p in parts]
        norms = [torch.tensor(norm) for norm in norms]
    places = [tuple(range(6 * g + 2 * i, 6 * g + 2 * i + 2) for g in range(2)) for i in range(3)]
    doras = [DoRA(part, norm) for part, norm in zip(parts, norms, strict=True)]
    whole = upon(doras, places, 12)
    for part, norm, rows in zip(parts, norms, places, strict=True):
        again = of_rows(whole, rows)
        assert np.array_equal(dense(again.direction), dense(part))
        assert bool((again.magnitude == norm).all())
    strided = of_rows(whole, (range(0, 12, 2),))
    assert np.array_equal(dense(strided.direction), dense(factors(whole))[::2])
