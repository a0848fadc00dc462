import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.grid import grid
from lora_tools.names import collapse, matches, template


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("q_proj", "layers.0.q_proj", True),
        ("q_proj", "q_proj", True),
        ("layers.0.q_proj", "layers.0.q_proj", True),
        ("0.q_proj", "layers.0.q_proj", True),
        ("proj", "layers.0.q_proj", False),
        (".q_proj", "layers.0.q_proj", False),
        ("layers.0", "layers.0.q_proj", False),
        ("*_proj", "layers.0.q_proj", True),
        ("*", "layers.0.q_proj", True),
        ("layers.*.q_proj", "layers.0.q_proj", True),
        ("layers.?.q_proj", "layers.12.q_proj", False),
        ("layers.[0-3].*", "model.layers.2.q_proj", True),
        ("layers.[!0-3].*", "model.layers.2.q_proj", False),
        ("Q_proj", "layers.0.q_proj", False),
        ("q.proj", "layers.0.q_proj", False),
        ("", "q", False),
    ],
)
def test_patterns(pattern, name, expected):
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.11.self_attn.q_proj", "model.layers.[].self_attn.q_proj"),
        ("h.0.mlp.experts.12.w1", "h.[].mlp.experts.[].w1"),
        ("0.1.2", "[].[].[]"),
        ("fc1.w2", "fc1.w2"),
        ("up_blocks1.x", "up_blocks1.x"),
        ("7", "[]"),
        ("q", "q"),
        ("lora_unet_down_blocks_0_attn1_to_q", "lora_unet_down_blocks_[]_attn1_to_q"),
        ("unet:3:up", "unet:[]:up"),
        ("w_a_003", "w_a_[]"),
    ],
)
def test_templates_blank_whole_numbers_only(name, expected):
    assert template(name) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["q"], "q"),
        (["layers.3.q"], "layers.3.q"),
        (["layers.0.q", "layers.1.q"], "layers.[0..1].q"),
        (["layers.0.q", "layers.2.q"], "layers.[0,2].q"),
        (["layers.0.q", "layers.1.q", "layers.2.q", "layers.5.q"], "layers.[0..2,5].q"),
        (["layers.10.q", "layers.9.q", "layers.8.q"], "layers.[8..10].q"),
        (["w_000", "w_001", "w_011"], "w_[000..001,011]"),
        (["blocks_9_q", "blocks_10_q"], "blocks_[9..10]_q"),
        (["h.0.e.3.w", "h.1.e.3.w"], "h.[0..1].e.3.w"),
        (["h.0.e.0.w", "h.0.e.1.w", "h.1.e.0.w", "h.1.e.1.w"], "h.[0..1].e.[0..1].w"),
    ],
)
def test_names_of_one_template_collapse(names, expected):
    assert collapse(names) == expected


def expand(ranges: str) -> set[int]:
    """Read ``0..2,5`` as people do."""
    numbers: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("..")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


@given(st.sets(st.integers(0, 30), min_size=2))
def test_a_collapsed_name_says_which_numbers_there_are(numbers):
    text = collapse([f"layers.{number}.q" for number in numbers])
    assert expand(text.removeprefix("layers.[").removesuffix("].q")) == numbers


def test_numbers_that_nobody_counts_and_blanks_of_a_name_itself_are_no_crash():
    digits = "9" * 5000
    assert collapse([f"a.{digits}.b"]) == f"a.{digits}.b"
    assert collapse([f"a.{digits}.b", "a.1.b"]) == "a.[…].b"
    assert collapse(["a.[].b", "a.0.b"]) == "a.[].b"
    assert len(grid(["1.a." * 5000 + "q"]).places) == 1
