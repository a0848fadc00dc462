import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.svd import core, svd
from lora_tools.update import LowRank

HOLDERS = ("torch", "numpy")
KINDS = ("plain", "scaled", "cancelling", "deficient", "zero rows", "parallel", "tiny", "huge")


def make(kind: str, seed: int, out: int, inp: int, rank: int) -> LowRank:
    """Return float32 factors of a kind that is hard in its own way."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(out, rank, generator=generator)
    a = torch.randn(rank, inp, generator=generator)
    spread = 10 ** torch.linspace(-6, 6, rank)
    match kind:
        case "scaled":  # harmless: B's columns undo A's rows
            b, a = b * spread, a / spread[:, None]
        case "cancelling":  # the product is far smaller than its factors
            common = torch.randn(out, 1, generator=generator)
            b, a = common + 1e-3 * b, torch.cat([a[:1] * 1e-3, a[1:] - a[1:].mean(0)])
            a = a - a.mean(0)
        case "deficient":
            b[:, rank // 2 :] = b[:, :1]
        case "zero rows":
            b[:, ::2] = 0
            a[1::3] = 0
        case "parallel":
            a = a[:1] + 1e-4 * a
        case "tiny":
            b, a = b * 1e-15, a * 1e-15
        case "huge":
            b, a = b * 1e15, a * 1e15
    return LowRank(a, b, alpha=3.0)


def factors(update: LowRank, holder: str) -> LowRank:
    """Return the update in arrays of torch or of numpy."""
    if holder == "torch":
        return update
    return LowRank(update.a.numpy(), update.b.numpy(), update.alpha)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(HOLDERS),
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
)
def test_singular_values_agree_with_a_dense_svd(holder, kind, seed, out, inp, rank):
    update = make(kind, seed, out, inp, rank)
    dense = torch.linalg.svdvals(update.dense(torch.float64))
    found = torch.from_numpy(core(factors(update, holder)).s)
    wanted = torch.zeros(rank, dtype=torch.float64)
    wanted[: len(dense)] = dense[:rank]
    # The dense product itself is only right to its own rounding.
    noise = 1e-14 * float(update.a.double().norm() * update.b.double().norm())
    assert (found - wanted).abs().max() <= 1e-6 * dense.max() + noise


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(HOLDERS), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_factors_multiply_back_to_the_update(holder, kind, seed):
    update = make(kind, seed, 24, 31, 7)
    dense = update.dense(torch.float64)
    u, s, vt = map(torch.as_tensor, svd(factors(update, holder)))
    assert torch.allclose(u @ torch.diag(s) @ vt, dense, atol=float(1e-6 * dense.abs().max()))


def test_left_and_right_are_orthonormal():
    u, s, vt = map(torch.as_tensor, svd(make("plain", 0, 50, 60, 8)))
    eye = torch.eye(8, dtype=torch.float64)
    assert torch.allclose(u.mT @ u, eye, atol=1e-10)
    assert torch.allclose(vt @ vt.mT, eye, atol=1e-10)
    assert (s.diff() <= 0).all()


def test_a_stack_is_decomposed_one_by_one():
    a, b = torch.randn(5, 3, 11), torch.randn(5, 13, 3)
    whole = core(LowRank(a, b, alpha=6.0)).s
    for index in range(5):
        one = core(LowRank(a[index], b[index], alpha=6.0)).s
        assert whole[index] == pytest.approx(one)


def test_an_update_of_zero_has_only_zeros():
    s, left, right = core(LowRank(torch.randn(4, 9), torch.zeros(8, 4), alpha=4.0))
    assert not s.any()
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()


def test_a_negative_scale_turns_one_side():
    update = LowRank(torch.randn(3, 6), torch.randn(5, 3), alpha=-6.0)
    heart = core(update)
    small = torch.from_numpy(heart.left @ heart.right)
    product = update.b.double() @ small @ update.a.double()
    assert torch.allclose(product, update.dense(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_is_computed_in_float64(dtype):
    update = LowRank(torch.randn(6, 40).to(dtype), torch.randn(30, 6).to(dtype), alpha=1.0)
    dense = torch.linalg.svdvals(update.dense(torch.float64))[:6]
    assert core(update).s == pytest.approx(dense.numpy(), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad):
    a, b = torch.randn(3, 6), torch.randn(5, 3)
    b[2, 1] = bad
    with pytest.raises(NonFiniteError):
        core(LowRank(a, b, alpha=1.0))
