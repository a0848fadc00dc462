import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.linalg.figures import effective_rank, pooled, stable_rank, sufficient

SPECTRA = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(
    lambda values: np.array(sorted(values, reverse=True))
)


@given(SPECTRA)
def test_ranks_lie_between_one_and_their_number(s):
    assert 1 <= stable_rank(s) <= len(s) * (1 + 1e-12)
    assert 1 - 1e-12 <= effective_rank(s) <= len(s) * (1 + 1e-12)


@given(SPECTRA, st.floats(1e-3, 1e3))
def test_a_scale_changes_neither(s, scale):
    assert stable_rank(scale * s) == pytest.approx(stable_rank(s))
    assert effective_rank(scale * s) == pytest.approx(effective_rank(s))


def test_equal_values_have_full_rank_and_a_single_one_has_rank_1():
    assert stable_rank(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_rank(np.full(7, 0.3)) == pytest.approx(7)
    alone = np.array([5.0, 0.0, 0.0])
    assert stable_rank(alone) == effective_rank(alone) == 1


@given(SPECTRA, st.floats(0.1, 0.999))
def test_sufficient_ranks_are_the_smallest(s, share):
    (rank,) = sufficient(s, [share])
    energy = [math.fsum(value**2 for value in s[:k]) for k in range(len(s) + 1)]
    assert energy[rank] >= share * energy[-1] * (1 - 1e-9)
    assert rank == 0 or energy[rank - 1] <= share * energy[-1] * (1 + 1e-9)


def test_a_stack_pools_the_energy_of_each_place():
    stack = np.array([[[3.0, 1.0]], [[4.0, 2.0]]])
    assert np.allclose(pooled(stack), [5.0, math.sqrt(5)])
    assert np.array_equal(pooled(np.array([2.0, 1.0])), [2.0, 1.0])
