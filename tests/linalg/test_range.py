"""Numbers of any size: a figure is right, or it is refused; none is 0, NaN or Inf by accident."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.apply import Device, Host, narrowed
from lora_tools.linalg.compare import compare
from lora_tools.linalg.metrics import norm, squared_distance, squared_norm
from lora_tools.linalg.range import LEAST, MOST
from lora_tools.linalg.rescale import rescale
from lora_tools.linalg.stored import widen
from lora_tools.linalg.svd import core
from lora_tools.linalg.truncate import truncate
from lora_tools.update import LowRank

RANDOM = np.random.default_rng(5)
B, A = RANDOM.standard_normal((12, 4)), RANDOM.standard_normal((4, 9))
SIGMA = np.linalg.svd(B @ A, compute_uv=False)[:4]
BOTH = ("float64", "float64")

# From 1e-308 to 1e300, as powers of two, so that the reference is the same numbers.
power = st.integers(-1020, 990)


def made(p: int, q: int, alpha: int, library: str = "numpy") -> LowRank:
    b, a = np.ldexp(B, p), np.ldexp(A, q)
    if library == "torch":
        return LowRank(torch.from_numpy(a), torch.from_numpy(b), 2.0**alpha)
    return LowRank(a, b, 2.0**alpha)


def expected(p: int, q: int, alpha: int) -> float | None:
    """Return the norm of `made`; None where it has no square in float64."""
    size = math.log2(np.linalg.norm(SIGMA)) + p + q + alpha - 2
    return 2.0**size if math.log2(LEAST) + 1 < size < math.log2(MOST) - 1 else None


def measures(update: LowRank, whole: float) -> None:
    """Check all that is measured of an update against those of the same numbers near 1."""
    near = pytest.approx
    assert math.sqrt(squared_norm(update)) == near(whole, rel=1e-9)
    found = core(update)
    assert found.s / whole == near(SIGMA / np.linalg.norm(SIGMA), rel=1e-7)
    other = LowRank(update.a, update.b, update.alpha * 3)
    assert math.sqrt(squared_distance(update, other)) == near(2 * whole, rel=1e-7)
    compared = compare(update, other)
    assert compared.norms == near((whole, 3 * whole), rel=1e-9)
    assert compared.difference == near(2 * whole, rel=1e-9)
    kept = truncate(update, found.s, found.left, 2, dtypes=BOTH, alpha=2.0, rslora=False)
    tail = np.linalg.norm(SIGMA[2:]) / np.linalg.norm(SIGMA)
    assert math.sqrt(kept.squared_error) / whole == near(tail, rel=1e-6)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@settings(max_examples=20, deadline=None)
@given(power, power, st.integers(-1020, 1000))
def test_figures_are_right_or_refused(library, p, q, alpha):
    update, whole = made(p, q, alpha, library), expected(p, q, alpha)
    if whole is None:
        for function in (core, squared_norm, lambda u: compare(u, LowRank(u.a, u.b, None))):
            try:
                found = function(update)
            except NonFiniteError:
                continue
            assert isinstance(found, float) or np.isfinite(found[0]).all()
        return
    measures(update, whole)


@settings(max_examples=20, deadline=None)
@given(st.lists(power, min_size=4, max_size=4), st.integers(-30, 30))
def test_a_column_may_be_as_small_as_its_row_is_large(powers, shift):
    powers = np.array(powers)
    with np.errstate(over="ignore"):  # left out in the next line
        b, a = np.ldexp(B, powers), np.ldexp(A, (shift - powers)[:, None])
    if not (np.isfinite(a).all() and np.isfinite(b).all() and a.all() and b.all()):
        return
    if (powers < -960).any() or (shift - powers < -960).any():
        return  # subnormal numbers have fewer digits than the reference
    measures(LowRank(a, b, 4.0), 2.0**shift * np.linalg.norm(SIGMA))


@settings(max_examples=20, deadline=None)
@given(st.integers(-148, 120), st.integers(-148, 120), st.integers(-200, 200))
def test_float32_is_measured_over_its_whole_range(p, q, alpha):
    b, a = np.ldexp(B, p).astype(np.float32), np.ldexp(A, q).astype(np.float32)
    update = LowRank(a, b, 2.0**alpha)
    near = np.ldexp(b.astype(np.float64), -p) @ np.ldexp(a.astype(np.float64), -q)
    size = p + q + alpha - 2
    if not near.any() or not -398 < size < 390:
        return
    assert math.sqrt(squared_norm(update)) / 2.0**size == pytest.approx(np.linalg.norm(near))
    assert core(update).s[0] / 2.0**size == pytest.approx(np.linalg.norm(near, 2), rel=1e-6)


@pytest.mark.parametrize("alpha", [math.inf, -math.inf, math.nan, 5e-324, 1e-308, 1e308])
def test_a_scale_that_cannot_be_measured_is_refused(alpha):
    for function in (core, squared_norm):
        with pytest.raises(NonFiniteError):
            function(LowRank(A, B, alpha))


@settings(max_examples=20, deadline=None)
@given(power, st.floats(-300, 300), st.sampled_from(["float64", "float32"]))
def test_an_error_of_0_is_0(p, decade, dtype):
    """Whatever a change of scale rounds away shows, and what it does not is no error."""
    update, alpha = LowRank(A, np.ldexp(B, p), 4.0), 4 * 10.0**decade
    try:
        new, squared = rescale(update, dtypes=(dtype, "float64"), alpha=alpha, rslora=False)
    except NonFiniteError:
        return
    ratio = 1 / new.scale
    exact = np.longdouble(new.b) / np.longdouble(ratio) == np.longdouble(update.b)
    if not exact.all():
        assert squared > 0
    if dtype == "float32":
        wide = new.b.astype(np.float64) * new.scale - update.b
        true = np.linalg.norm(wide @ A) / math.sqrt(squared_norm(update))
        assert math.sqrt(squared / squared_norm(update)) == pytest.approx(true, rel=1e-3, abs=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_rounding_adds_to_nothing_is_seen(dtype):
    """Of a rank that is padded with nothing, a truncation loses the rounding, and says how much."""
    b, a = np.hstack([B, 0 * B]).astype(dtype), np.vstack([A, 0 * A]).astype(dtype)
    update = LowRank(a, b, 8.0)
    found = core(update)
    new, squared = truncate(
        update, found.s, found.left, 4, dtypes=(dtype, dtype), alpha=4.0, rslora=False
    )
    true = np.linalg.norm(update.dense("float64") - new.dense("float64"))
    assert math.sqrt(squared) == pytest.approx(true, rel=0.2, abs=1e-14 * np.linalg.norm(SIGMA))
    assert 0 < squared < 1e-12 * squared_norm(update)


@settings(max_examples=20, deadline=None)
@given(st.integers(-1074, 1023), st.integers(1, 200_000))
def test_the_norm_of_an_array_is_right_at_any_size(p, count):
    array = np.full(count, 2.0**p)
    with np.errstate(over="ignore"):
        expected = np.ldexp(math.sqrt(count), p)
    assert norm(array) == pytest.approx(expected, rel=1e-9, abs=5e-324)


@pytest.mark.parametrize(
    "adder", [Host, lambda _, target: Device("cpu", target, target)], ids=["host", "device"]
)
@pytest.mark.parametrize("size", [2.0**-60, 2.0**-20, 2.0**20, 2.0**30])
@pytest.mark.parametrize("target", ["BF16", "F32"])
def test_the_tally_of_a_merge_is_right_at_any_size(target, size, adder):
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32}
    weight = torch.ones(12, 9).to(kinds[target])
    left, right = narrowed(B * size, A * size, np.float32 if target == "BF16" else np.float64)
    raw = weight.view(torch.uint8).reshape(-1).numpy()
    worker = adder(weight.numel(), target)
    wide = worker.load(raw, weight.numel(), partial(widen, raw, target))
    out, tally = worker.add(wide, left, right)
    merged = torch.from_numpy(out.copy()).view(kinds[target]).double().reshape(12, 9).numpy()
    delta = size * size * (B @ A)
    assert math.sqrt(tally.update) == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    lost = merged - 1.0 - delta
    assert math.sqrt(tally.error) == pytest.approx(np.linalg.norm(lost), rel=1e-3)
    assert tally.error > 0
    assert tally.updated == delta.size


def test_what_cannot_be_added_measurably_is_refused():
    for size in (1e-70, 1e70):
        with pytest.raises(NonFiniteError):
            narrowed(B * size, A * size, np.float32)
    left, right = narrowed(0 * B, A, np.float32)
    assert not left.any()
    assert right.dtype == np.float32
