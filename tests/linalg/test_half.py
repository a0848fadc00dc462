import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lora_tools.linalg.half import narrow, widen

EVERY = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have the same bits, or are both NaN, everywhere."""
    bits = x.view(f"u{x.itemsize}") == y.view(f"u{y.itemsize}")
    return bool((bits | (np.isnan(x) & np.isnan(y))).all())


def test_every_half_is_widened_exactly():
    assert same(widen(FINITE), FINITE.astype(np.float32))
    assert same(widen(EVERY), EVERY.astype(np.float32))


def test_every_half_comes_back():
    assert same(narrow(widen(FINITE)), FINITE)


def test_every_tie_goes_to_the_even_neighbour():
    wide = np.sort(FINITE.astype(np.float32))
    middles = (wide[1:] + wide[:-1]) / 2
    for nudge in (0, 1, -1):  # the tie itself, and the float32 on either side of it
        numbers = (middles.view(np.int32) + nudge).view(np.float32)
        assert same(narrow(numbers), numbers.astype(np.float16))


@settings(max_examples=300, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)))
def test_narrow_is_numpys_cast(numbers):
    with np.errstate(over="ignore"):
        assert same(narrow(numbers), numbers.astype(np.float16))


def test_views_and_stacks_are_fine():
    stack = FINITE[: 3 * 40 * 50].reshape(3, 40, 50)
    assert same(widen(stack.swapaxes(1, 2)), stack.swapaxes(1, 2).astype(np.float32))
    assert same(narrow(stack.astype(np.float32).swapaxes(1, 2)), stack.swapaxes(1, 2))
