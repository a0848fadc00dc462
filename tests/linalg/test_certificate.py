"""The two halves of the certificate: the bound by chance, and the Schur complement."""

import numpy as np
import pytest

from lora_tools.linalg.certificate import (
    Ritz,
    chi_square_above,
    chi_square_below,
    growth,
    ideal,
    reach,
)


@pytest.mark.parametrize("degrees", [1, 4, 16, 100])
@pytest.mark.parametrize("chance", [0.3, 0.01])
def test_quantiles_of_chi_square_err_on_the_safe_side(degrees, chance):
    sample = np.random.default_rng(0).chisquare(degrees, 200_000)
    sure = chance + 4 * np.sqrt(chance / len(sample))
    assert (sample <= chi_square_below(degrees, chance)).mean() <= sure
    assert (sample >= chi_square_above(degrees, chance)).mean() <= sure


def test_growth_falls_with_steps_and_width_and_rises_with_certainty():
    assert growth(4096, 16, 5, 1e-9) > growth(4096, 16, 6, 1e-9) > 1
    assert growth(4096, 8, 5, 1e-9) > growth(4096, 16, 5, 1e-9)
    assert growth(4096, 16, 5, 1e-12) > growth(4096, 16, 5, 1e-9)
    assert growth(10, 16, 5, 1e-9) == np.inf


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_the_norm_exceeds_the_growth_no_more_often_than_it_may(decay):
    """Many small runs with a chance that can be seen: the rate of failures stays below it."""
    rng = np.random.default_rng(0)
    size, width, steps, chance, runs = 60, 3, 2, 0.2, 2000
    values = np.arange(1, size + 1) ** -decay
    values[0] = 1.5  # hidden among many
    factor = growth(size, width, steps, chance)
    failures = 0
    for _ in range(runs):
        start = rng.standard_normal((size, width))
        space = np.hstack([start, values[:, None] * start])
        q = np.linalg.qr(space)[0]
        largest = np.linalg.eigvalsh(q.T @ (values[:, None] * q))[-1]
        failures += values[0] > factor * largest
    assert failures / runs <= chance


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("size", [6, 20, 40])
def test_reach_is_never_below_the_true_sums(rank, size):
    """For any basis at all, given the exact norm of the rest."""
    rng = np.random.default_rng(size)
    for decay in (0.0, 0.5, 2.0):
        values = np.sort(np.arange(1, 61.0) ** -decay)[::-1]
        start = rng.standard_normal((60, size)) * values[:, None] ** rng.choice([0, 1, 3])
        q = np.linalg.qr(start)[0]
        a = np.diag(values)
        theta, y = np.linalg.eigh(q.T @ a @ q)
        outside = np.eye(60) - q @ q.T
        coupling = outside @ a @ q @ y
        rest = np.linalg.eigvalsh(outside @ a @ outside)[-1]
        found = reach(Ritz(theta, coupling, rest), min(rank, size))
        sums = np.append(0, np.cumsum(values))[: len(found)]
        assert (found >= sums * (1 - 1e-12)).all()
        assert ideal(theta, rest, min(rank, size)) <= found[-1] * (1 + 1e-9)


def test_reach_is_exact_where_nothing_couples():
    values = np.array([1.0, 2.0, 5.0])
    ritz = Ritz(values, np.zeros((1, 3)), rest=1.5)
    assert reach(ritz, 3) == pytest.approx([0, 5, 7, 8.5])
