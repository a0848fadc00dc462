from functools import partial

import numpy as np
import pytest
import torch

from lora_tools.files.dtypes import code_of
from lora_tools.linalg.apply import Device, Gain, Host
from lora_tools.linalg.stored import accumulator, widen

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def inputs(source: str, target: str, rows=37, columns=53):
    weight = torch.randn(rows, columns).to(DTYPES[source])
    kind = accumulator(target)
    left = np.random.default_rng(1).standard_normal((rows, 5)).astype(kind) * 0.3
    right = np.random.default_rng(2).standard_normal((5, columns)).astype(kind) * 0.3
    left[3] = 0
    return weight, left, right


def run(adder, weight, left, right, gain=None):
    raw = weight.view(torch.uint8).reshape(-1).numpy()
    wide = adder.load(raw, weight.numel(), partial(widen, raw, code_of(weight.dtype)))
    out, tally = adder.add(wide, left, right, gain)
    return out.copy(), tally


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_sum_and_tally_are_those_of_float64(source, target):
    weight, left, right = inputs(source, target)
    out, tally = run(Host(weight.numel(), target), weight, left, right)
    merged = torch.from_numpy(out).view(DTYPES[target]).double().reshape(weight.shape)
    delta = torch.from_numpy(left.astype(np.float64) @ right.astype(np.float64))
    total = weight.double() + delta
    eps = torch.finfo(DTYPES[target]).eps
    assert bool(((merged - total).abs() <= eps * total.abs() + 1e-6 * delta.abs()).all())
    assert tally.update == pytest.approx(float(delta.square().sum()), rel=1e-5)
    assert tally.error == pytest.approx(float((merged - total).square().sum()), rel=1e-2, abs=1e-9)
    assert tally.updated == int((delta != 0).sum()) < delta.numel()
    assert tally.lost == int(((delta != 0) & (merged == weight.double())).sum())


@pytest.mark.parametrize("gain", [None, "rows", "columns"])
@pytest.mark.parametrize("code", ["BF16", "F16", "F32"])
def test_a_device_computes_what_the_host_does(code, gain):
    weight, left, right = inputs(code, code)
    magnitude = np.random.default_rng(3).random(len(left) if gain == "rows" else right.shape[1]) + 1
    its = Gain(magnitude, gain == "columns") if gain else None
    host, tally = run(Host(weight.numel(), code), weight, left, right, its)
    device, other = run(Device("cpu", code, code), weight, left, right, its)
    x, y = (torch.from_numpy(z).view(DTYPES[code]).double() for z in (host, device))
    assert int((x != y).sum()) <= 2
    assert torch.allclose(x, y, rtol=2 * torch.finfo(DTYPES[code]).eps)
    assert other.update == pytest.approx(tally.update, rel=1e-5)
    assert other.error == pytest.approx(tally.error, rel=1e-2, abs=1e-20)
    assert other.updated == tally.updated
    assert abs(other.lost - tally.lost) <= 2


@pytest.mark.parametrize("adder", [Host(12, "F32"), Device("cpu", None, "F32")])
def test_encoded_values_are_decoded_when_they_are_loaded(adder):
    raw = np.arange(12, dtype=np.uint8)

    def decode(out):
        out[:] = raw / 7

    out = adder.finish(adder.load(raw, 12, decode))
    assert np.array_equal(out.view(np.float32), (raw / 7).astype(np.float32))
