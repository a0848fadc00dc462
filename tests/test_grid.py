import random

import documents
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.grid import OUTSIDE, WIDTH, grid


def parts(names):
    """Return the layer and the projection of each name."""
    found = grid(names)
    return [(found.rows[row], found.columns[column]) for row, column in found.places]


def test_a_language_model_is_layers_by_projections():
    found = grid(documents.language(32))
    assert found.prefix == "model.layers"
    assert found.labels == tuple(map(str, range(32)))
    assert set(found.columns) == {*documents.ATTENTION, *documents.MLP}
    assert len(set(found.places)) == 224


def test_the_order_of_layers_is_that_of_their_numbers():
    names = documents.language(12)
    random.Random(0).shuffle(names)
    assert grid(names).labels == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["layers.0.q", "layers.0.k"], [("layers.0", "q"), ("layers.0", "k")]),
        (["layers.0.q"], [("layers.0", "q")]),
        (["lm_head"], [(OUTSIDE, "lm_head")]),
        (["layers.7"], [(OUTSIDE, "layers.7")]),
        (
            ["down.1.attn.0.blocks.0.to_q", "down.1.attn.0.blocks.0.to_out.0"],
            [("down.1.attn.0.blocks.0", "to_q"), ("down.1.attn.0.blocks.0", "to_out.0")],
        ),
        (
            ["b.0.to_q", "b.0.ff.net.0.proj", "b.0.ff.net.2"],
            [("b.0", "to_q"), ("b.0", "ff.net.0.proj"), ("b.0", "ff.net.2")],
        ),
        (
            ["lora_unet_down_1_attn_0_to_q", "lora_unet_down_1_attn_0_to_k"],
            [("lora_unet_down_1_attn_0", "to_q"), ("lora_unet_down_1_attn_0", "to_k")],
        ),
        (
            ["l.3.experts.17.up", "l.3.experts.17.down", "l.3.gate"],
            [("l.3.experts.17", "up"), ("l.3.experts.17", "down"), ("l.3", "gate")],
        ),
        (["l.²3.q", f"l.{'9' * 5000}.q"], [(OUTSIDE, "l.²3.q"), (f"l.{'9' * 5000}", "q")]),
    ],
)
def test_a_name_is_a_layer_and_a_projection(names, expected):
    assert parts(names) == expected


def test_a_diffusion_model_has_short_labels_that_differ():
    found = grid(documents.diffusion())
    assert len(set(found.labels)) == len(found.labels)
    assert max(map(len, found.labels)) <= WIDTH
    assert found.rows[-1] == OUTSIDE
    assert "ff.net.0.proj" in found.columns


@pytest.mark.parametrize("names", [["a_0_a", "a.0.a"], ["0_a", "0.a"]])
def test_a_path_and_the_same_path_flattened_do_not_meet(names):
    found = grid(names)
    assert len(set(found.places)) == 2
    assert found.rows[-1] == OUTSIDE


def test_no_modules_are_an_empty_grid():
    found = grid([])
    assert found.rows == found.columns == found.places == ()


words = st.sampled_from(["a", "b", "0", "1", "10", "net", "x_1", "", "é"])
paths = st.lists(words, min_size=1, max_size=6).flatmap(
    lambda path: st.sampled_from(["_".join(path), ".".join(path)])
)


@given(st.lists(paths, unique=True))
def test_no_two_names_share_a_place_and_none_is_changed(names):
    found = grid(names)
    assert len(found.places) == len(names)
    assert len(set(found.labels)) == len(found.labels) == len(found.rows)
    assert len(set(found.places)) == len(names)
    for name, (layer, projection) in zip(names, parts(names), strict=True):
        assert name == projection or name in (f"{layer}.{projection}", f"{layer}_{projection}")
