import numpy as np
import pytest

from lora_tools.errors import BoundError
from lora_tools.linalg.rank import Energy, Fixed, MaxParams
from lora_tools.linalg.spectrum import Spectrum, tail
from lora_tools.linalg.uniform import uniform

VLLM = (1, 8, 16, 32)


def spectrum(*s: float) -> Spectrum:
    return Spectrum("m", tail(np.array(s)), 10, 2.0, tuple(range(1, len(s) + 1)))


def test_a_uniform_rank_rounds_up_and_pays_for_its_padding():
    wide, narrow = spectrum(*[1.0] * 20), spectrum(1.0, 1.0, 1.0)
    assert uniform(Fixed(5), [wide, narrow], VLLM) == (8, [5, 3])
    assert uniform(Fixed(8), [wide, narrow], VLLM) == (8, [8, 3])
    assert uniform(Energy(0.3), [wide, narrow], VLLM) == (8, [8, 3])
    assert uniform(Energy(0.9), [wide, narrow], VLLM) == (32, [20, 3])
    assert uniform(MaxParams(170), [wide, narrow], VLLM) == (8, [8, 3])
    assert uniform(MaxParams(20), [wide, narrow], VLLM) == (1, [1, 1])
    with pytest.raises(BoundError):
        uniform(MaxParams(19), [wide, narrow], VLLM)
    with pytest.raises(BoundError):
        uniform(Fixed(40), [spectrum(*[1.0] * 40)], VLLM)
