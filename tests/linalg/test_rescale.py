import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.update import Biased, DoRA, LowRank

HALF = ("float16", "float16")


@settings(max_examples=50, deadline=None)
@given(st.integers(-6, 6), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_a_power_of_two_is_folded_without_rounding(power, dtype):
    torch.manual_seed(power)
    update = LowRank(
        torch.randn(4, 9).to(dtype), torch.randn(8, 4).to(dtype), alpha=4.0 * 2.0**power
    )
    stated, squared = rescale(update, dtypes=(str(dtype)[6:],) * 2, alpha=4.0, rslora=False)
    assert squared == 0.0
    assert stated.scale == 1.0
    assert torch.equal(stated.dense(torch.float64), update.dense(torch.float64))


def test_what_does_not_change_keeps_its_very_tensors():
    update = LowRank(torch.randn(4, 9).half(), torch.randn(8, 4).half(), alpha=7.0)
    stated, squared = rescale(update, dtypes=HALF, alpha=7.0, rslora=False)
    assert stated.a is update.a
    assert stated.b is update.b
    assert squared == 0.0


def test_a_factor_goes_where_it_is_exact():
    # B is at the edge of float16's range, A is not.
    update = LowRank(torch.ones(1, 3).half(), torch.full((2, 1), 65504.0).half(), alpha=2.0)
    stated, squared = rescale(update, dtypes=HALF, alpha=1.0, rslora=False)
    assert squared == 0.0
    assert torch.equal(stated.b, update.b)
    assert torch.equal(stated.a, 2 * update.a)


@pytest.mark.parametrize("alpha", [3.0, 5.5, 0.1])
def test_rounding_is_measured(alpha):
    update = LowRank(torch.randn(4, 90).half(), torch.randn(80, 4).half(), alpha=alpha)
    stated, squared = rescale(update, dtypes=HALF, alpha=4.0, rslora=False)
    before, after = update.dense(torch.float64), stated.dense(torch.float64)
    assert squared == pytest.approx(float((before - after).square().sum()), rel=1e-5)
    assert 0 < squared < 1e-6 * float(before.square().sum())


def test_overflow_is_refused():
    update = LowRank(torch.full((1, 3), 1e6), torch.full((2, 1), 1e6), alpha=1.0)
    with pytest.raises(NonFiniteError):
        rescale(update, dtypes=HALF, alpha=1.0, rslora=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_bias_means_what_it_meant_under_another_scale(dtype):
    old = LowRank(torch.randn(4, 9), torch.randn(8, 4), alpha=12.0)
    before = Biased(old, torch.randn(8).to(dtype))
    after = refactored(before, LowRank(old.a, old.b, alpha=4.0))
    assert after.bias.dtype == dtype
    was, now = 3.0 * before.bias.double(), after.bias.double()
    assert torch.allclose(was, now, rtol=torch.finfo(dtype).eps)
    measured = float((was - now).square().sum())
    assert bias_error(before, after) == pytest.approx(measured, abs=1e-14 * float(was.norm()) ** 2)


def test_a_magnitude_belongs_to_the_merged_weight_and_stays():
    old = LowRank(torch.randn(4, 9), torch.randn(8, 4), alpha=12.0)
    magnitude = torch.randn(8)
    after = refactored(DoRA(old, magnitude), LowRank(old.a, old.b, alpha=4.0))
    assert after.magnitude is magnitude
    assert bias_error(old, after) == 0
