import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.report import total

FIGURES = st.tuples(st.floats(0, 1e6), st.floats(0, 1))


def test_a_total_is_the_error_of_the_blocks_of_one_matrix():
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((4, 5)) for _ in range(3)]
    others = [block + 0.1 * rng.standard_normal((4, 5)) for block in blocks]
    norms = [float(np.linalg.norm(block)) for block in blocks]
    gaps = [float(np.linalg.norm(x - y)) for x, y in zip(blocks, others, strict=True)]
    parts = [(norm, gap / norm) for norm, gap in zip(norms, gaps, strict=True)]
    whole = np.linalg.norm(np.hstack(blocks) - np.hstack(others)) / np.linalg.norm(
        np.hstack(blocks)
    )
    assert total(parts) == pytest.approx(float(whole), rel=1e-12)


@given(st.lists(FIGURES, max_size=20))
def test_the_order_of_modules_does_not_matter(parts):
    assert total(iter(parts)) == total(reversed(parts))


def test_of_nothing_nothing_is_lost():
    assert total([]) == total([(0.0, 0.5)]) == 0.0
    assert math.isnan(total([(math.nan, 0.1)]))
