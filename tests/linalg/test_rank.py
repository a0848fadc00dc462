import numpy as np
import pytest

from lora_tools.errors import BoundError, PolicyError
from lora_tools.linalg.rank import (
    Energy,
    Fixed,
    MaxBytes,
    MaxError,
    MaxParams,
    Rest,
)
from lora_tools.linalg.spectrum import Spectrum, tail


def spectrum(*s: float, cost: int = 10, allowed: tuple[int, ...] = ()) -> Spectrum:
    ranks = allowed or tuple(range(1, len(s) + 1))
    return Spectrum("m", tail(np.array(s, dtype=np.float64)), cost, 2.0, ranks)


STEEP = spectrum(4, 2, 1, 0.5)
FLAT = spectrum(1, 1, 1, 1)


def test_fixed_never_raises_a_rank():
    assert Fixed(3).ranks([STEEP, spectrum(1, 1)]) == [3, 2]


def test_fixed_refuses_where_every_choice_is_larger():
    with pytest.raises(BoundError, match="rank 2"):
        Fixed(2).ranks([spectrum(1, 1, 1, 1, allowed=(4,))])


@pytest.mark.parametrize(
    ("share", "rank"), [(0.5, 1), (16 / 21.25, 1), (0.9, 2), (0.99, 4), (1, 4)]
)
def test_energy_keeps_the_smallest_sufficient_rank(share, rank):
    assert Energy(share).ranks([STEEP]) == [rank]


def test_energy_refuses_what_the_limits_forbid():
    with pytest.raises(BoundError, match="energy"):
        Energy(0.9).ranks([spectrum(1, 1, 1, 1, allowed=(1, 2))])


def test_an_error_per_module_bounds_each():
    assert MaxError(0.3, per_module=True).ranks([STEEP, FLAT]) == [2, 4]


def test_an_error_for_the_whole_spends_where_it_is_cheapest():
    # 2.5 of 25.25 may go: the steep one's last two values and one of the flat one's, 2.25.
    assert MaxError((2.5 / 25.25) ** 0.5).ranks([STEEP, FLAT]) == [2, 3]
    assert sum(MaxError((3.5 / 25.25) ** 0.5).ranks([STEEP, FLAT])) == 4


def test_an_error_of_nothing_keeps_everything_that_counts():
    assert MaxError(1e-9).ranks([STEEP, spectrum(1, 0, 0)]) == [4, 1]


def test_an_error_that_no_choice_keeps_is_refused():
    with pytest.raises(BoundError, match=r"leave 0\.7"):
        MaxError(0.1).ranks([spectrum(1, 1, 1, 1, allowed=(1, 2))])


def test_budgets_count_what_else_is_in_the_file():
    assert sum(MaxParams(50).ranks([STEEP, FLAT])) == 5
    assert sum(MaxParams(50).ranks([STEEP, FLAT], Rest(params=20))) == 3
    assert sum(MaxBytes(100).ranks([STEEP, FLAT], Rest(nbytes=20, header=20))) == 3
    with pytest.raises(BoundError, match="too few"):
        MaxParams(19).ranks([STEEP, FLAT])


@pytest.mark.parametrize(
    "make", [lambda: Fixed(0), lambda: Energy(0), lambda: Energy(1.1), lambda: MaxError(-1)]
)
def test_requests_without_meaning_are_refused(make):
    with pytest.raises(PolicyError):
        make()
