"""Rows under rotary embeddings: the two orders, and what needs to know which one a file has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_tools.adapter import read
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.formats.rotary import (
    Paired,
    from_file,
    paired,
    to_file,
    to_halves,
    to_pairs,
)
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.diff import diff
from lora_tools.verbs.merge import WeightedAdapter, plan
from lora_tools.verbs.shrink import shrink

sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3))


@given(sizes, st.booleans())
def test_pairs_are_halves_put_side_by_side(size, vector):
    heads, half, rank = size
    b = np.arange(heads * 2 * half * rank).reshape(-1, rank)
    b = b[:, 0] if vector else b
    expected = np.empty_like(b)
    for head in range(heads):
        for row in range(half):
            for part in range(2):
                here = head * 2 * half + 2 * row + part
                expected[here] = b[head * 2 * half + part * half + row]
    for array in (b, torch.from_numpy(b)):
        pairs = to_pairs(array, heads)
        assert type(pairs) is type(array)
        assert np.array_equal(pairs, expected)
        assert np.array_equal(to_halves(pairs, heads), b)


def test_an_order_that_is_not_known_is_kept():
    b = np.arange(8)
    assert from_file(None, b) is to_file(None, b) is b
    assert from_file(Paired(None), b) is to_file(Paired(None), b) is b
    assert list(to_file(Paired(2), b)) == [0, 2, 1, 3, 4, 6, 5, 7]
    assert list(from_file(Paired(2), to_file(Paired(2), b))) == list(b)


def test_rows_that_no_heads_share_are_refused():
    assert paired("q", 8, 4) == Paired(4)
    assert paired("q", 7, None) == Paired(None)
    with pytest.raises(FormatError, match="q: 12 rows are not those of 4 heads"):
        paired("q", 12, 4)


@pytest.fixture
def adapter(tmp_path):
    """An adapter of one module, as a format would describe it that keeps pairs together."""
    name = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"diffusion_model.{name}.lora_A.weight": torch.randn(2, 6),
        f"diffusion_model.{name}.lora_B.weight": torch.randn(8, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    return read(tmp_path / "x.safetensors")


def ordered(adapter, rows):
    (module,) = adapter.manifest.modules
    manifest = replace(adapter.manifest, modules=(replace(module, rows=rows),))
    return replace(adapter, manifest=manifest)


def test_what_needs_the_order_of_the_base_refuses_an_unknown_one(adapter, tmp_path):
    unknown = ordered(adapter, Paired(None))
    other = format_named("kohya")
    weight = f"{next(iter(adapter))}.weight"
    save_file({weight: torch.randn(8, 6)}, tmp_path / "base.safetensors")
    from lora_tools.model import open_model

    base = open_model(tmp_path / "base.safetensors")
    for act in (
        lambda: convert(unknown, other),
        lambda: plan(base, [WeightedAdapter(unknown)]),
        lambda: diff(unknown, adapter),
        lambda: diff(adapter, unknown),
    ):
        with pytest.raises(UnsupportedError, match="does not say how many heads") as caught:
            act()
        assert caught.value.__notes__ == [
            "Give the base model, whose config.json says it: --base MODEL."
        ]
    assert diff(unknown, unknown).same
    assert len(shrink(unknown, Fixed(1))) == 1
    assert len(convert(unknown, unknown.format)) == 1


def test_a_known_order_is_that_of_its_file_alone(adapter):
    known = ordered(adapter, Paired(2))
    assert diff(known, adapter).same
    (module,) = convert(known, format_named("kohya")).manifest.modules
    assert module.rows is None
