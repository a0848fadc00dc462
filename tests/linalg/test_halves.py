import numpy as np
import pytest
import torch

from lora_tools.linalg.halves import takes_back
from lora_tools.update import LowRank


def doubled(stack=(), step=0.1):
    """Return [B, -B0] and [A; A0], as trained from B0 and A0 by steps of a size."""
    random = np.random.default_rng(0)
    b, a = random.standard_normal((*stack, 30, 4)), random.standard_normal((*stack, 4, 20))
    moved = [x + step * random.standard_normal(x.shape) for x in (b, a)]
    return np.concatenate([moved[0], -b], -1), np.concatenate([moved[1], a], -2)


@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize("step", [0.0, 0.1, 0.5])
def test_doubled_ranks_are_seen(stack, step):
    b, a = doubled(stack, step)
    assert takes_back(LowRank(a, b, 8))
    assert takes_back(LowRank(torch.tensor(a).bfloat16(), torch.tensor(b).bfloat16(), 8))


def test_other_factors_are_not_taken_for_them():
    b, a = doubled()
    half = np.zeros((4, 20))
    assert not takes_back(LowRank(a, -np.abs(b), 8))
    assert not takes_back(LowRank(np.random.default_rng(1).standard_normal(a.shape), b, 8))
    assert not takes_back(LowRank(a[:7], b[:, :7], 8))  # an odd rank
    assert not takes_back(LowRank(np.concatenate([a[:4], half]), b, 8))
