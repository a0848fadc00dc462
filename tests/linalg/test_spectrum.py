import numpy as np
import pytest

from lora_tools.errors import BoundError
from lora_tools.linalg.spectrum import Spectrum, choices, tail


def test_a_spectrum_tells_what_each_choice_discards_and_costs():
    found = Spectrum("m", tail(np.array([[2.0, 1.0], [4.0, 2.0]])), 10, 2.0, (2, 4), groups=2)
    assert found.tails == pytest.approx([5.0, 0.0])
    assert list(found.costs) == [20.0, 40.0]


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"rank": 5}, (1, 2, 3, 4, 5)),
        ({"rank": 5, "least": 3}, (3, 4, 5)),
        ({"rank": 5, "most": 2}, (1, 2)),
        ({"rank": 20, "multiple": 8}, (8, 16)),
        ({"rank": 4, "multiple": 8}, (4,)),
        ({"rank": 2, "least": 3}, (2,)),
    ],
)
def test_choices(arguments, allowed):
    assert choices(**arguments) == allowed


def test_limits_that_leave_nothing_are_refused():
    with pytest.raises(BoundError):
        choices(20, most=4, multiple=8)
