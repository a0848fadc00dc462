"""Factors as they are stored, and the error that is measured on just those bytes."""

import numpy as np
import pytest
import torch

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.krylov import Precision, leading
from lora_tools.linalg.operator import HostOperator, TorchOperator, operator
from lora_tools.linalg.rounding import rounded
from lora_tools.linalg.split import split
from lora_tools.linalg.stored import widened

CODES = ("F64", "F32", "F16", "BF16")


def noisy(m: int, n: int, decay: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    sizes = np.arange(1.0, 101) ** -decay
    return ((rng.standard_normal((m, 100)) * sizes) @ rng.standard_normal((100, n))).astype("f4")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(150, 600), (600, 150)])
@pytest.mark.parametrize("decay", [0.3, 1.0, 3.0])
def test_the_error_is_that_of_the_bytes(code, shape, decay):
    d = noisy(*shape, decay)
    matrix = HostOperator(d)
    parts = split(matrix, leading(matrix, 16, Precision()), 16, code)
    left, right = (widened(part, code).astype("f8") for part in (parts.left, parts.right))
    true = np.linalg.norm(d - left @ right)
    assert np.sqrt(parts.squared_error) / np.linalg.norm(d) == pytest.approx(
        true / np.linalg.norm(d), abs=1e-7
    )


def test_ranks_that_the_matrix_does_not_have_are_filled_with_nothing():
    d = np.outer(np.arange(1, 9.0), np.arange(1, 7.0)).astype("f4")
    matrix = HostOperator(d)
    parts = split(matrix, leading(matrix, 3, Precision()), 3, "F32")
    assert np.abs(parts.left @ parts.right - d).max() < 1e-5
    assert np.isfinite(parts.left).all()


def test_numbers_that_the_type_cannot_hold_are_refused():
    with pytest.raises(NonFiniteError, match="exceed the range of F16"):
        rounded(np.array([1e6]), "F16")


@pytest.mark.parametrize("code", CODES)
def test_what_is_stored_widens_to_what_was_computed_with(code):
    stored = rounded(np.random.default_rng(0).standard_normal((4, 5)), code)
    assert np.array_equal(widened(stored.bits, code), stored.wide)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_torch_multiplies_as_numpy_does(shape):
    d = noisy(*shape, 0.5)
    host, device = operator(d), operator(torch.from_numpy(d))
    assert isinstance(device, TorchOperator)
    assert device.squared == pytest.approx(host.squared, rel=1e-12)
    rows = np.random.default_rng(1).standard_normal((3, shape[1]))
    moved = device.array(rows, "float64")
    assert device.host(device.gram(moved)) == pytest.approx(host.gram(rows))
    columns = host.columns(rows)
    assert device.host(device.columns(moved)) == pytest.approx(columns)
    again = device.array(columns, "float64")
    assert device.host(device.rows(again)) == pytest.approx(host.rows(columns))
    (x, left), (y, right) = host.inner(), device.inner()
    assert left is right
    assert y == pytest.approx(x)


def test_a_run_in_torch_finds_what_one_in_numpy_does():
    d = noisy(700, 800, 0.7)
    x, y = (leading(operator(a), 8, Precision()) for a in (d, torch.from_numpy(d)))
    assert y.squares == pytest.approx(x.squares, rel=1e-5)
    assert y.method == x.method
    parts = split(operator(torch.from_numpy(d)), y, 8, "BF16")
    left, right = (widened(part, "BF16").astype("f8") for part in (parts.left, parts.right))
    true = np.linalg.norm(d - left @ right) ** 2
    assert parts.squared_error == pytest.approx(true, rel=1e-6)
