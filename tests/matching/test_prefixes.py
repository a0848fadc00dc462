import pytest

from lora_tools.errors import FormatError
from lora_tools.matching import Prefix, align

LAYERS = [f"layers.{i}.{name}.weight" for i in range(3) for name in ("q", "k")]


@pytest.mark.parametrize(
    ("ours", "theirs"), [("", ""), ("model.", ""), ("", "model."), ("a.b.", "c."), ("m.", "x.m.")]
)
def test_names_align_whatever_stands_before_either(ours, theirs):
    names = [ours + name for name in LAYERS]
    others = [theirs + name for name in LAYERS] + ["embed.weight", "q.weight"]
    prefixes = align(names, others)
    assert not prefixes.ties
    assert [prefixes(name) for name in names] == others[: len(names)]


def test_most_names_decide_where_all_belong():
    others = [f"model.{name}" for name in LAYERS] + ["layers.0.q.weight"]
    assert align(LAYERS, others).found == {"layers.": Prefix("", "model.")}


def test_names_that_fit_twice_are_refused_with_both_places():
    towers = [f"{tower}.{name}" for tower in ("text", "vision") for name in LAYERS]
    prefixes = align(LAYERS, towers)
    assert prefixes.ties == (Prefix("", "text."), Prefix("", "vision."))
    with pytest.raises(FormatError, match=r"the base in several places: text\., vision\."):
        prefixes.check("fits the base")


def test_strangers_do_not_align():
    assert not align(["layers.0.q"], {"layers.0.v", "layers.0.xq"}).found
    assert not align(["layers.0.q.weight"], {"norm.weight", "head.weight"}).found
    assert not align([], {"a"}).found
    assert Prefix("model.", "")("layers.0.q") is None
