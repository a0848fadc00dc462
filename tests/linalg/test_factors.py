"""Numpy and torch hold a factor alike."""

import numpy as np
import pytest
import torch

from lora_tools.linalg.factors import HostFactor, TorchFactor, as_factor, padded

TYPES = ["float16", "float32", "float64"]


def both(dtype: str, *shape: int) -> tuple[HostFactor, TorchFactor]:
    tensor = torch.randn(*shape).to(getattr(torch, dtype))
    return HostFactor(tensor.numpy()), TorchFactor(tensor)


def as_tensor(factor) -> torch.Tensor:
    return torch.as_tensor(factor.array)


def test_the_array_decides_who_computes():
    assert isinstance(as_factor(np.zeros((3, 2))), HostFactor)
    assert isinstance(as_factor(torch.zeros(3, 2)), TorchFactor)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(50, 4), (3, 50, 4)])
def test_products_agree(dtype, shape):
    host, torchs = both(dtype, *shape)
    small = np.random.default_rng(0).normal(size=(4, 2))
    assert host.dot(host) == pytest.approx(torchs.dot(torchs), rel=1e-12)
    assert host.dot(torchs) == pytest.approx(host.dot(host), rel=1e-12)
    exact = host.array.astype(np.float64) @ small
    for factor in (host, torchs):
        for target in (*TYPES, "bfloat16"):
            product = as_tensor(factor.times(small, target))
            assert str(product.dtype) == f"torch.{target}"
            wanted = torch.from_numpy(exact).to(product.dtype)
            step = torch.finfo(product.dtype).eps
            assert torch.allclose(product, wanted, rtol=2 * step, atol=10 * step)


@pytest.mark.parametrize("dtype", TYPES)
def test_scaling_knows_whether_it_is_exact(dtype):
    for factor in both(dtype, 20, 3):
        same, exact = factor.scaled(1.0, dtype)
        assert same is factor
        assert exact
        double, exact = factor.scaled(2.0, dtype)
        assert exact
        assert torch.equal(as_tensor(double), 2 * as_tensor(factor))
        assert not factor.scaled(1 / 3, dtype)[1]
        assert not factor.scaled(1e30, "float16")[0].is_finite()
        rounded, exact = factor.scaled(1.0, "bfloat16")
        assert not exact
        assert torch.equal(as_tensor(rounded), as_tensor(factor).bfloat16())


def test_padding_appends_zeros():
    for factor in both("float32", 2, 5, 3):
        wide = torch.as_tensor(padded(factor.array, 2))
        assert wide.shape == (2, 5, 5)
        assert torch.equal(wide[..., :3], as_tensor(factor))
        assert not wide[..., 3:].any()
        assert padded(factor.array, 0) is factor.array


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_factor_times_a_number_is_rounded_once(dtype):
    # By way of float32 the product would become a tie, and the tie go down to the even 1.
    step = torch.finfo(getattr(torch, dtype)).eps
    for factor in (HostFactor(np.ones((1, 1))), TorchFactor(torch.ones(1, 1, dtype=torch.float64))):
        found, exact = factor.scaled(1 + step / 2 + 2.0**-40, dtype)
        assert as_tensor(found).item() == 1 + step
        assert not exact
    host = HostFactor(np.ones((1, 1))).times(np.array([[1 + step / 2 + 2.0**-40]]), dtype)
    assert as_tensor(host).item() == 1 + step
