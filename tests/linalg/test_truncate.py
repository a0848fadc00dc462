import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.svd import core
from lora_tools.linalg.truncate import truncate
from lora_tools.update import LowRank

HALF = (torch.float16, torch.bfloat16)


def decaying(rank: int, stack: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> LowRank:
    weights = torch.arange(1, rank + 1, dtype=torch.float32) ** -1.0
    a = torch.randn(*stack, rank, 70) * weights[:, None]
    return LowRank(a.to(dtype), torch.randn(*stack, 60, rank).to(dtype), alpha=2.0 * rank)


def cut(update: LowRank, rank: int, dtype: torch.dtype, alpha: float | None = None):
    heart = core(update)
    alpha = float(rank) if alpha is None else alpha
    name = str(dtype).removeprefix("torch.")
    types = (name, name)
    return truncate(update, heart.s, heart.left, rank, dtypes=types, alpha=alpha, rslora=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_the_error_is_that_of_the_stored_factors(dtype, stack):
    update = decaying(12, stack)
    small, squared = cut(update, 5, dtype)
    assert small.a.dtype == small.b.dtype == dtype
    dense = update.dense(torch.float64)
    measured = float((dense - small.dense(torch.float64)).square().sum())
    assert squared == pytest.approx(measured, rel=1e-6)
    best = float(torch.linalg.svdvals(dense)[..., 5:].square().sum())
    assert squared >= best * (1 - 1e-9)
    allowed = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 0.02}
    assert squared <= best * (1 + allowed[dtype])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.01, 100), st.booleans())
def test_any_scale_says_the_same_update(rank, alpha, rslora):
    update = decaying(12)
    heart = core(update)
    types = ("float64", "float64")
    one = truncate(update, heart.s, heart.left, rank, dtypes=types, alpha=alpha, rslora=rslora)
    two = truncate(update, heart.s, heart.left, rank, dtypes=types, alpha=None, rslora=False)
    assert torch.allclose(one.update.dense(torch.float64), two.update.dense(torch.float64))


def test_factors_carry_half_of_the_magnitude_each():
    small = cut(decaying(12), 4, torch.float32).update
    assert torch.allclose(small.b.norm(dim=0), small.a.norm(dim=1), rtol=1e-4)


def test_fitting_the_second_factor_lowers_the_error_of_rounding():
    update = decaying(8)
    heart = core(update)
    dense = update.dense(torch.float64)
    plain = (update.b.double() @ heart.left).bfloat16().double() @ (
        torch.from_numpy(heart.right) @ update.a.double()
    ).bfloat16().double()
    fitted = cut(update, 8, torch.bfloat16, alpha=8.0).squared_error
    assert fitted < float((dense - plain).square().sum())


def test_a_rank_beyond_the_true_one_costs_nothing():
    update = decaying(8)
    update.b[:, 3:] = 0
    small, squared = cut(update, 6, torch.float64)
    assert squared <= 1e-20 * float(update.dense(torch.float64).square().sum())
    assert small.a.isfinite().all()


def test_numbers_beyond_the_type_are_refused():
    update = decaying(4)
    large = LowRank(update.a * 1e7, update.b * 1e7, alpha=4.0)
    with pytest.raises(NonFiniteError, match="float16"):
        cut(large, 2, torch.float16)
    assert cut(large, 2, torch.bfloat16).update.b.isfinite().all()
