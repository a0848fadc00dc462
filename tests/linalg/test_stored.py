"""Stored numbers become wider ones exactly."""

import numpy as np
import pytest
import torch

from lora_tools.linalg.stored import spacing, widen, widened

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


@pytest.mark.parametrize("code", DTYPES)
def test_every_number_widens_exactly(code):
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    theirs = torch.from_numpy(bits.view(np.int16)).view(DTYPES[code]).float().numpy()
    elements = bits if code == "BF16" else bits.view(np.float16)
    assert np.array_equal(widened(elements, code), theirs, equal_nan=True)
    for kind in (np.float32, np.float64):
        out = np.empty(bits.size, kind)
        with np.errstate(invalid="ignore"):  # a NaN may be a signalling one
            widen(bits.view(np.uint8), code, out)
        assert np.array_equal(out, theirs, equal_nan=True)


@pytest.mark.parametrize("code", DTYPES)
def test_spacing_is_the_distance_to_the_next_number(code):
    values = torch.rand(1000).mul(100).add(1e-3).to(DTYPES[code])
    above = (values.view(torch.int16) + 1).view(DTYPES[code]).double()
    assert np.array_equal(spacing(values.double().numpy(), code), (above - values.double()).numpy())
