"""bfloat16 by integers, against torch's own casts."""

import numpy as np
import torch

from lora_tools.linalg.bfloat import narrow, widen


def test_every_number_widens_exactly():
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    ours = widen(bits)
    theirs = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_numbers_round_as_torch_rounds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    for single in (bits.view(np.float32), ties.view(np.float32)):
        theirs = torch.from_numpy(single.copy()).bfloat16().float().numpy()
        assert np.array_equal(widen(narrow(single)), theirs, equal_nan=True)


def test_a_nan_stays_one():
    # Rounded up as a number, these bits would become an infinity.
    nan = np.array([0x7F80FFFF, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(nan))).all()
