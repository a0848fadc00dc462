from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.linalg.allocate import RankOptions, minimise


def tails(seed: int, ranks: int) -> np.ndarray:
    energy = np.sort(np.random.default_rng(seed).random(ranks))[::-1] ** 3
    return np.append(np.cumsum(energy[::-1])[::-1], 0.0)[1:]


def modules() -> st.SearchStrategy[list[RankOptions]]:
    one = st.builds(
        lambda seed, ranks, cost: RankOptions(tails(seed, ranks), cost * np.arange(1.0, ranks + 1)),
        st.integers(0, 10**6),
        st.integers(1, 5),
        st.integers(1, 30),
    )
    return st.lists(one, min_size=1, max_size=5)


def brute(options: list[RankOptions], budget: float) -> float:
    values = (
        sum(o.value[pick] for o, pick in zip(options, picks, strict=True))
        for picks in product(*(range(len(o.value)) for o in options))
        if sum(o.weight[pick] for o, pick in zip(options, picks, strict=True)) <= budget
    )
    return min(values, default=float("inf"))


@settings(max_examples=300, deadline=None)
@given(modules(), st.floats(0, 1), st.booleans())
def test_no_allocation_is_better(options, share, reverse):
    if reverse:  # least parameters within an error, instead of least error within a budget
        options = [RankOptions(o.weight[::-1], o.value[::-1]) for o in options]
    low = sum(float(o.weight[0]) for o in options)
    high = sum(float(o.weight[-1]) for o in options)
    budget = low + share * (high - low)
    picks = minimise(options, budget)
    weight = sum(o.weight[pick] for o, pick in zip(options, picks, strict=True))
    value = sum(o.value[pick] for o, pick in zip(options, picks, strict=True))
    assert weight <= budget * (1 + 1e-12)
    # The last digit of a sum, and so its order, may decide what is within a budget exactly.
    assert value <= brute(options, budget * (1 - 1e-12)) * (1 + 1e-9)


def test_a_model_of_the_usual_size_is_searched_in_full():
    rng = np.random.default_rng(0)
    options = []
    for cost in [8192, 8192, 8192, 8192, 15104, 15104, 15104] * 32:
        energy = (rng.uniform(0.5, 2) * np.arange(1.0, 65) ** -rng.uniform(0.5, 1.5)) ** 2
        tail = np.append(np.cumsum(energy[::-1])[::-1], 0.0)[1:]
        options.append(RankOptions(tail, cost * np.arange(1.0, 65)))
    budget = 50e6
    picks = minimise(options, budget)
    spent = sum(o.weight[pick] for o, pick in zip(options, picks, strict=True))
    assert budget - 8192 < spent <= budget


def test_values_that_are_free_are_taken():
    free = RankOptions(np.array([3.0, 1.0]), np.array([0.0, 0.0]))
    assert minimise([free, free], 0.0) == [1, 1]


@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_values_that_are_free_after_a_step_are_taken_with_it(budget):
    late = RankOptions(np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.0, 1.0]))
    assert minimise([late], budget) == [2 if budget >= 1 else 0]
    early = RankOptions(np.array([5.0, 4.0, 3.5]), np.array([0.0, 0.0, 1.0]))
    picks = minimise([late, early], budget)
    value = sum(o.value[pick] for o, pick in zip([late, early], picks, strict=True))
    assert value == brute([late, early], budget)


@given(modules(), st.lists(st.integers(-1000, 1000), min_size=5), st.floats(0, 1), st.booleans())
def test_modules_of_any_size_are_allocated(options, powers, share, reverse):
    """An adapter's alpha may be 1e300 and that of one module 1e-300."""
    options = [
        RankOptions(np.ldexp(o.value, p), o.weight) for o, p in zip(options, powers, strict=False)
    ]
    if reverse:
        options = [RankOptions(o.weight[::-1], o.value[::-1]) for o in options]
    low = sum(float(o.weight[0]) for o in options)
    high = sum(float(o.weight[-1]) for o in options)
    budget = low + share * (high - low)
    picks = minimise(options, budget)
    weight = sum(o.weight[pick] for o, pick in zip(options, picks, strict=True))
    assert weight <= budget * (1 + 1e-12)
    assert all(0 <= pick < len(o.value) for o, pick in zip(options, picks, strict=True))
