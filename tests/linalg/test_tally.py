import numpy as np
import pytest
import torch

from lora_tools.linalg.tally import Tally, tally


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_tally_is_that_of_every_element(kind):
    rng = np.random.default_rng(0)
    delta, change = (rng.standard_normal(1000).astype(kind) for _ in range(2))
    delta[:10] = change[5:20] = 0
    found = tally(delta, change)
    assert found.update == pytest.approx(float(np.square(delta.astype(float)).sum()), rel=1e-5)
    gap = change.astype(float) - delta
    assert found.error == pytest.approx(float(np.square(gap).sum()), rel=1e-5)
    assert (found.updated, found.lost) == (990, 10)
    assert found.lost_to_rounding == 10 / 990
    assert tally(torch.from_numpy(delta), torch.from_numpy(change))[2:] == found[2:]
    ours = tally(torch.from_numpy(delta), torch.from_numpy(change))
    assert ours[:2] == pytest.approx(found[:2], rel=1e-5)


def test_tallies_add_up():
    assert Tally(1.0, 2.0, 3, 4) + Tally(1.0, 1.0, 1, 1) == Tally(2.0, 3.0, 4, 5)
    assert Tally().lost_to_rounding == 0
