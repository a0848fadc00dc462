import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tools.linalg.angles import outside, principal_angles


def orthonormal(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.floats(-14, 0), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_angles_that_were_put_in_come_out_tiny_ones_too(seed, exponents, more):
    wanted = np.sort(np.pi / 2 * 10.0 ** np.array(exponents))
    k = len(wanted)
    basis = orthonormal(seed, 30, 2 * k + more)
    u = basis[:, : k + more]
    v = basis[:, :k] * np.cos(wanted) + basis[:, k + more :] * np.sin(wanted)
    turn = orthonormal(seed + 1, k, k)
    for found in (principal_angles(u, v @ turn), principal_angles(v @ turn, u)):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-14)


def test_the_same_space_and_orthogonal_spaces():
    basis = orthonormal(3, 20, 8)
    turned = basis[:, :4] @ orthonormal(4, 4, 4)
    assert principal_angles(basis[:, :4], turned).max() < 1e-14
    assert principal_angles(basis[:, :4], basis[:, 4:]) == pytest.approx([np.pi / 2] * 4)
    assert np.abs(outside(basis[:, :4], turned)).max() < 1e-14
