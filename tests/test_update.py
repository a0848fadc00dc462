import math

import numpy as np
import pytest
import torch

from lora_tools.update import Biased, DoRA, LowRank, factors


def random(*stack: int, rank: int = 3, out: int = 5, inp: int = 4, **fields: object) -> LowRank:
    fields = {"alpha": 6.0} | fields
    return LowRank(torch.randn(*stack, rank, inp), torch.randn(*stack, out, rank), **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"alpha": 6.0}, 2.0),
        ({"alpha": None}, 1.0),
        ({"alpha": None, "rslora": True}, 1.0),
        ({"alpha": 6.0, "rslora": True}, 6 / math.sqrt(3)),
        ({"alpha": 6.0, "groups": 2}, 1.0),
        ({"alpha": 6.0, "groups": 2, "rslora": True}, 6 / math.sqrt(6)),
    ],
)
def test_scale(fields, expected):
    assert random(**fields).scale == expected


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
def test_dense_is_the_product_of_every_pair(stack):
    update = random(*stack)
    found = update.dense(torch.float64)
    assert found.dtype == torch.float64
    assert found.shape == (*stack, 5, 4)
    for index in np.ndindex(stack):
        b, a = update.b[index].double().numpy(), update.a[index].double().numpy()
        assert np.allclose(found[index].numpy(), 2 * np.einsum("or,ri->oi", b, a), rtol=1e-12)


def test_arrays_of_numpy_give_the_same_update():
    update = random(2)
    arrays = LowRank(update.a.numpy(), update.b.numpy(), update.alpha)
    assert arrays.rank == update.rank
    assert arrays.scale == update.scale
    found = arrays.dense(np.float64)
    assert found.dtype == np.float64
    assert np.allclose(found, update.dense(torch.float64).numpy(), rtol=1e-12)


def test_dense_is_single_unless_another_type_is_asked_for():
    update = random()
    half = LowRank(update.a.half(), update.b.half(), alpha=3.0)
    exact = half.b.double() @ half.a.double()
    assert half.dense().dtype == torch.float32
    assert half.dense(torch.float32).dtype == torch.float32
    assert torch.allclose(half.dense(torch.float64), exact, rtol=1e-12)


def test_a_stack_has_the_rank_of_each():
    assert random(7, rank=2).rank == 2


def test_factors_are_the_low_rank_part():
    low = random()
    assert factors(low) is low
    assert factors(DoRA(low, torch.ones(5))) is low
    assert factors(Biased(low, torch.ones(5))) is low


def test_updates_are_compared_by_identity():
    update = random()
    assert update != LowRank(update.a, update.b, update.alpha)
