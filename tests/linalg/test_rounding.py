"""One rounding, against exact fractions, against torch from float32, and against a dense one."""

import math
from fractions import Fraction

import dense
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.rounding import SLICE, odd, round_into, rounded, rounded_tensor
from lora_tools.linalg.stored import WIDTH, widen, widened

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
HARD = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 2**-9, 1 + 2**-11, 1 + 2**-11 + 2**-40, 1 + 2**-11 - 2**-40]
HARD += [
    1 + 2**-8 + 2**-50,
    65519.99,
    65504,
    2**-24,
    2**-25,
    2**-25 + 2**-60,
    3e-41,
    3.39e38,
    1e-30,
]


def narrow(wide: np.ndarray, code: str) -> torch.Tensor:
    out, back = np.empty(wide.size * WIDTH[code], np.uint8), np.empty_like(wide)
    round_into(wide, code, out, back)
    result = torch.from_numpy(out).view(DTYPES[code])
    assert np.array_equal(back, result.to(torch.float64).numpy(), equal_nan=True)
    again = np.empty_like(wide)
    widen(out, code, again)
    assert np.array_equal(again, back, equal_nan=True)
    return result


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_rounding_to_nearest_ties_to_even(code, kind):
    random = np.random.default_rng(0)
    wide = random.standard_normal(200_000) * 10.0 ** random.integers(-9, 5, 200_000)
    wide = np.concatenate([wide, HARD, np.negative(HARD)])
    wide = wide[np.abs(wide) < torch.finfo(DTYPES[code]).max].astype(kind)
    wanted = dense.rounded(torch.from_numpy(wide.astype(np.float64)), DTYPES[code])
    assert torch.equal(narrow(wide, code).view(torch.int16), wanted.view(torch.int16))
    assert torch.equal(rounded_tensor(torch.from_numpy(wide), DTYPES[code]), wanted)


@pytest.mark.parametrize("code", DTYPES)
def test_what_is_no_number_stays_none(code):
    wide = np.array([np.nan, np.inf, -np.inf, 1e39, 1.0])
    found = narrow(wide, code)
    assert found[0].isnan()
    assert found[1:].tolist() == [np.inf, -np.inf, np.inf, 1.0]
    assert narrow(wide[:3].astype(np.float32), code)[1:].tolist() == [np.inf, -np.inf]


def test_a_nan_whose_last_bits_are_set_does_not_become_zero():
    wide = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert narrow(wide, "BF16").isnan().all()


def test_a_nan_is_not_rounded_up_into_an_infinity():
    nan = np.array([0x7F80FFFF, 0xFF800001], np.uint32).view(np.float32)
    for code in DTYPES:
        assert narrow(nan, code).isnan().all()
    wide = np.array([0x7FF0000000000001, -1]).view(np.float64)
    for code in DTYPES:
        assert narrow(wide, code).isnan().all()


def test_float32_rounds_to_bfloat16_as_torch_rounds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    for single in (bits.view(np.float32), ties.view(np.float32)):
        theirs = torch.from_numpy(single.copy()).bfloat16().float().numpy()
        assert np.array_equal(narrow(single, "BF16").float().numpy(), theirs, equal_nan=True)


def exactly(x: float, code: str) -> float:
    """Round by the definition, in fractions: the nearest multiple of the step, ties to even."""
    digits, least, most = {"BF16": (8, -126, 127), "F16": (11, -14, 15)}[code]
    exponent = max(math.frexp(x)[1] - 1, least) - digits + 1
    step = Fraction(2) ** exponent
    result = round(Fraction(x) / step) * step
    return math.copysign(math.inf if abs(result) >= 2 ** (most + 1) else float(abs(result)), x)


def around(number: float) -> list[float]:
    """Return a number, its neighbours in float64, and what is off it by less than float32 shows."""
    near = [math.nextafter(number, math.inf), math.nextafter(number, -math.inf)]
    return [number, *near, number * (1 + 2.0**-30), number * (1 - 2.0**-30)]


@pytest.mark.parametrize("code", DTYPES)
def test_beside_every_tie_the_nearer_neighbour_wins(code):
    every = np.arange(1 << 15, dtype=np.int32).astype(np.int16)
    numbers = torch.from_numpy(every).view(DTYPES[code]).double()
    finite = numbers[numbers.isfinite()].numpy()  # all that are not negative, from 0 on
    middles = (finite[1:] + finite[:-1]) / 2
    above = np.concatenate([middles, np.nextafter(middles, np.inf), middles * (1 + 2.0**-30)])
    below = np.concatenate([np.nextafter(middles, 0), middles * (1 - 2.0**-30)])
    even = np.where(every[: len(middles)] & 1, finite[1:], finite[:-1])
    wanted = np.concatenate([even, finite[1:], finite[1:], finite[:-1], finite[:-1]])
    wide = np.concatenate([above, below])
    for numbers, nearest in ((wide, wanted), (-wide, -wanted)):
        assert np.array_equal(narrow(numbers, code).double().numpy(), nearest)
        assert np.array_equal(rounded(numbers, code).wide, nearest)
        tensor = rounded_tensor(torch.from_numpy(numbers), DTYPES[code])
        assert np.array_equal(tensor.double().numpy(), nearest)


@pytest.mark.parametrize("code", DTYPES)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(65520.0)
@example(3.4028235e38)
@example(3.4e38)
@example(2.0**-134)
def test_any_number_is_rounded_as_fractions_round_it(code, x):
    numbers = [n for n in around(x) if math.isfinite(n)]
    wanted = torch.tensor([exactly(n, code) for n in numbers], dtype=torch.float64)
    wide = np.array(numbers)
    assert torch.equal(narrow(wide, code).double(), wanted)
    assert torch.equal(rounded_tensor(torch.from_numpy(wide), DTYPES[code]).double(), wanted)
    signs = [math.copysign(1, n) for n in narrow(wide, code).double().tolist()]
    assert signs == [math.copysign(1, n) for n in numbers]


@given(st.floats(allow_nan=False))
def test_sixteen_digits_the_last_odd_bracket_the_number(x):
    bits = np.array([x]).view(np.int64)
    (found,) = odd(bits).view(np.float64).tolist()
    if found == x:
        return
    last = 1 << 37
    found_bits = odd(bits)[0]
    assert found_bits & (last - 1) == 0
    assert found_bits & last
    down, up = np.array([found_bits - last, found_bits + last]).view(np.float64)
    assert abs(down) < abs(x) < abs(up)


def test_slices_are_joined_as_if_rounded_at_once():
    wide = np.random.default_rng(0).standard_normal((3, SLICE + 5))
    for code, dtype in DTYPES.items():
        stored = rounded(wide, code)
        wanted = dense.rounded(torch.from_numpy(wide), dtype)
        assert np.array_equal(stored.wide, wanted.double().numpy())
        assert np.array_equal(widened(stored.bits, code), stored.wide)
        turned = rounded(wide.T, code)
        assert np.array_equal(turned.bits, stored.bits.T)


def test_what_a_type_cannot_hold_is_refused():
    assert rounded(np.array([65519.99]), "F16").wide == 65504
    with pytest.raises(NonFiniteError, match="exceed the range of F16"):
        rounded(np.array([65520.0]), "F16")
    with pytest.raises(NonFiniteError, match="exceed the range of F32"):
        rounded(np.array([1e39]), "F32")
    with pytest.raises(NonFiniteError, match="exceed the range of F64"):
        rounded(np.array([np.nan]), "F64")
