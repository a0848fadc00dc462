import dense
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.linalg.rounding import WIDTH, odd, rounded, rounded_tensor, spacing, widen

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
    rounded(wide, code, out, back)
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
    assert torch.equal(rounded_tensor(torch.from_numpy(wide), code), wanted)


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


@given(st.floats(-3e38, 3e38))
def test_rounding_to_odd_brackets_the_number(x):
    found = odd(np.array([x]))
    exact = float(found[0]) == x
    assert exact or found.view(np.uint32)[0] & 1
    if not exact and np.isfinite(x):
        away = np.nextafter(found, np.float32(np.inf if x > 0 else -np.inf))
        assert min(abs(x), abs(float(found[0]))) <= abs(x)
        assert abs(float(found[0])) < abs(x) < abs(float(away[0])) or (
            abs(x) < abs(float(found[0]))
            and abs(float(np.nextafter(found, np.float32(0))[0])) < abs(x)
        )


@pytest.mark.parametrize("code", DTYPES)
def test_spacing_is_the_distance_to_the_next_number(code):
    values = torch.rand(1000).mul(100).add(1e-3).to(DTYPES[code])
    above = (values.view(torch.int16) + 1).view(DTYPES[code]).double()
    assert np.array_equal(spacing(values.double().numpy(), code), (above - values.double()).numpy())
