from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from lora_tools.scaling import alpha_for, scale

ranks = st.integers(1, 1024)
alphas = st.one_of(st.integers(1, 512), st.floats(2**-10, 2**10))


@given(alphas, st.integers(1, 16), st.booleans())
def test_the_scale_is_that_of_peft(alpha, rank, rslora):
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora)
    layer = Linear(nn.Linear(1, 1), "default", config, r=rank, lora_alpha=alpha)
    assert scale(alpha, rank, rslora=rslora) == layer.scaling["default"]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 64])
def test_without_an_alpha_the_scale_is_one(rank, rslora):
    assert scale(None, rank, rslora=rslora) == 1.0


@given(alphas, ranks)
def test_the_plain_scale_is_the_nearest_number(alpha, rank):
    assert scale(alpha, rank, rslora=False) == float(Fraction(alpha) / rank)


@given(st.floats(2**-10, 2**10), ranks, st.booleans())
def test_alpha_for_is_the_inverse_of_scale(factor, rank, rslora):
    alpha = alpha_for(factor, rank, rslora=rslora)
    assert scale(alpha, rank, rslora=rslora) == pytest.approx(factor, rel=1e-15)


@given(ranks)
def test_scale_one_is_exact_where_alpha_is_the_rank(rank):
    assert alpha_for(1.0, rank, rslora=False) == rank
    assert scale(rank, rank, rslora=False) == 1.0
