"""Shapes at the edge: one row, one column, none, no rank, more rank than the matrix has."""

import numpy as np
import pytest
import torch
from fake_device import FakeDevice

from lora_tools.linalg.compare import compare
from lora_tools.linalg.factors import factors_of
from lora_tools.linalg.halves import takes_back
from lora_tools.linalg.krylov import Precision, full, leading
from lora_tools.linalg.metrics import squared_distance, squared_norm
from lora_tools.linalg.operator import operator
from lora_tools.linalg.rescale import rescale
from lora_tools.linalg.split import split
from lora_tools.linalg.svd import core, svd
from lora_tools.linalg.truncate import truncate
from lora_tools.update import Array, LowRank

PLACES = ["numpy", "torch", "device"]
SIDES = [0, 1, 5]
RANKS = [0, 1, 7]
STACKS = [(), (2,)]
BOTH = ("float32", "float32")


@pytest.fixture(params=PLACES)
def place(request):
    """Return what brings an array of numpy to a place: as it is, to torch, to a device."""
    if request.param == "numpy":
        yield lambda array: array
    elif request.param == "torch":
        yield torch.from_numpy
    else:
        with FakeDevice("cuda:0"):
            yield lambda array: torch.from_numpy(array).to("cuda")


def host(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("inp", SIDES)
@pytest.mark.parametrize("out", SIDES)
def test_updates_of_any_shape(out, inp, rank, stack, place):
    random = np.random.default_rng(out * 100 + inp * 10 + rank)
    b = random.standard_normal((*stack, out, rank)).astype(np.float32)
    a = random.standard_normal((*stack, rank, inp)).astype(np.float32)
    update = LowRank(place(a), place(b), None)
    dense = b.astype(np.float64) @ a.astype(np.float64)
    whole = float(np.linalg.norm(dense))
    close = {"rel": 1e-5, "abs": 1e-6}
    assert factors_of(update).scale == 1.0
    assert squared_norm(update) ** 0.5 == pytest.approx(whole, **close)
    found = core(update)
    assert np.linalg.norm(found.s) == pytest.approx(whole, **close)
    u, s, vt = svd(update)
    again = host(u) * s[..., None, :] @ host(vt)
    assert again == pytest.approx(dense, **close)
    twice = LowRank(update.a, place(2 * b), None)
    assert squared_distance(update, twice) ** 0.5 == pytest.approx(whole, **close)
    compared = compare(update, twice)
    assert compared.difference == pytest.approx(whole, **close)
    assert compare(update, update).difference == 0
    takes_back(update)
    same, lost = rescale(update, dtypes=BOTH, alpha=None, rslora=False)
    assert (same.a is update.a, lost) == (True, 0.0)
    for k in {min(1, rank), rank}:
        new, lost = truncate(update, found.s, found.left, k, dtypes=BOTH, alpha=None, rslora=False)
        rest = dense - host(new.b).astype(np.float64) @ host(new.a).astype(np.float64)
        assert lost**0.5 == pytest.approx(np.linalg.norm(rest), **close)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("small", [0, 512])
@pytest.mark.parametrize("shape", [(m, n) for m in SIDES for n in SIDES] + [(1, 900), (900, 1)])
def test_matrices_of_any_shape(shape, rank, small, place):
    dense = np.random.default_rng(sum(shape)).standard_normal(shape)
    matrix = operator(place(dense))
    whole = float(np.square(dense).sum())
    assert matrix.squared == pytest.approx(whole)
    found = leading(matrix, rank, Precision(small=small), "name")
    kept = min(rank, *shape)
    values = np.square(np.linalg.svd(dense, compute_uv=False)) if min(shape) else np.zeros(0)
    assert found.squares == pytest.approx(values[:kept], abs=1e-9 * whole)
    assert full(matrix, kept).squares == pytest.approx(values[:kept], abs=1e-9 * whole)
    parts = split(matrix, found, kept, "F32")
    rest = dense - parts.left.astype(np.float64) @ parts.right.astype(np.float64)
    assert parts.squared_error == pytest.approx(float(np.square(rest).sum()), rel=1e-4, abs=1e-12)
