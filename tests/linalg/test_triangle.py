import numpy as np
import pytest
import torch

from lora_tools.linalg.factors import as_factor
from lora_tools.linalg.triangle import gram_triangle, triangle

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((50, 5)), RNG.standard_normal((50, 4))
DEAD = X * [1, 0, 1, 1, 0]
PAIRS = {
    "apart": (X, Y),
    "near": (X, X[:, :4] + 1e-9 * Y),
    "inside": (X, X @ RNG.standard_normal((5, 4))),
    "dead columns": (DEAD, Y),
    "dependent columns": (X[:, [0, 0, 1, 2, 3]], Y),
    "dependent rest": (X, X[:, :4] + 1e-3 * Y[:, [0, 0, 1, 2]]),
    "wide": (X[:3], Y[:3]),
    "stacks": (np.stack([X, X + 1]), np.stack([X[:, :4] + 1e-8 * Y, Y])),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_triangle_has_the_gram_matrix_of_the_columns(kind):
    x, y = PAIRS[kind]
    whole = np.concatenate([x, y], axis=-1)
    gram = whole.swapaxes(-1, -2) @ whole
    root = triangle([as_factor(x), as_factor(y)])
    assert root.swapaxes(-1, -2) @ root == pytest.approx(gram, abs=1e-12 * np.abs(gram).max())
    tensors = triangle([as_factor(torch.from_numpy(x)), as_factor(torch.from_numpy(y))])
    assert tensors == pytest.approx(root, abs=1e-12)


@pytest.mark.parametrize(("kind", "refused"), [("apart", False), ("near", True), ("wide", True)])
def test_gram_matrices_are_refused_where_they_lack_digits(kind, refused):
    x, y = PAIRS[kind]
    assert (gram_triangle([as_factor(x), as_factor(y)]) is None) == refused


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-6, 1e-3])
def test_what_is_left_of_a_near_factor_keeps_its_digits(size):
    basis = np.linalg.qr(RNG.standard_normal((50, 9)))[0]
    x, rest = basis[:, :5] @ RNG.standard_normal((5, 5)), basis[:, 5:]
    root = triangle([as_factor(x), as_factor(x[:, :4] + size * rest)])
    values = np.linalg.svd(root[5:, 5:], compute_uv=False)
    assert values == pytest.approx(size, rel=1e-2 if size == 1e-12 else 1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_numbers_that_are_none_show(bad, side):
    pair = [X.copy(), Y.copy()]
    pair[side][3, 2] = bad
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(triangle([as_factor(array) for array in pair])).all()
