import pytest
import torch

from lora_tools.linalg.metrics import inner, squared_distance, squared_norm
from lora_tools.update import LowRank


@pytest.mark.parametrize("stack", [(), (3,)])
def test_inner_products_are_those_of_the_dense_matrices(stack):
    x = LowRank(torch.randn(*stack, 4, 20), torch.randn(*stack, 30, 4), alpha=2.0)
    y = LowRank(torch.randn(*stack, 7, 20), torch.randn(*stack, 30, 7), alpha=3.0, rslora=True)
    dense_x, dense_y = x.dense(torch.float64), y.dense(torch.float64)
    assert inner(x, y) == pytest.approx(float((dense_x * dense_y).sum()))
    assert squared_norm(x) == pytest.approx(float(dense_x.square().sum()))
    assert squared_distance(x, y) == pytest.approx(float((dense_x - dense_y).square().sum()))


def test_a_distance_of_nothing_is_noise_at_most():
    x = LowRank(torch.randn(4, 20), torch.randn(30, 4), alpha=2.0)
    assert 0 <= squared_distance(x, x) <= 1e-14 * squared_norm(x)
