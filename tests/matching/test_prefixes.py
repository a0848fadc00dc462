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


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("layers.31.attn.q.weight", "layers.0.attn.q.weight"),
        ("layers.31.attn.q.weight", "model.layers.0.attn.q.weight"),
        ("layers.0.attn.q.weight", "attn.q.weight"),
        ("attn.q.weight", "layers.0.attn.q.weight"),
        ("experts.1.layers.0.q.weight", "layers.0.q.weight"),
        ("layers.0.q.weight", "experts.1.layers.0.q.weight"),
        ("text_encoder_2.layers.0.q.weight", "layers.0.q.weight"),
        ("layers.0.attn.q.weight", "blocks.0.attn.q.weight"),
    ],
)
def test_a_prefix_neither_drops_nor_adds_nor_changes_a_number_or_what_it_counts(name, other):
    prefixes = align([name], [other])
    assert prefixes(name) != other
    assert not any(prefix != Prefix() for prefix in prefixes.found.values())


@pytest.mark.parametrize(
    ("name", "other", "known", "fits"),
    [
        ("vision_tower.layers.0.q.w", "model.layers.0.q.w", "", False),
        ("model.layers.0.q.w", "vision_tower.layers.0.q.w", "", False),
        ("model.encoder.layers.0.q.w", "model.layers.0.q.w", "", False),
        ("language_model.layers.0.q.w", "vision_tower.layers.0.q.w", "", False),
        ("vision_tower.layers.0.q.w", "layers.0.q.w", "llama", False),
        ("vision_tower.layers.0.q.w", "layers.0.q.w", "siglip_vision_model", True),
        ("vision_tower.vision_model.layers.0.q.w", "vision_model.layers.0.q.w", "", True),
        ("language_model.layers.0.q.w", "model.layers.0.q.w", "llama", True),
        ("model.layers.0.q.w", "model.language_model.layers.0.q.w", "", True),
    ],
)
def test_one_part_of_a_model_does_not_pass_for_another(name, other, known, fits):
    prefixes = align([name], [other], known)
    assert (prefixes(name) == other) is fits
    if not fits:
        (reason,) = prefixes.refused.values()
        here, there = (text.partition("layers.")[0] or "the top" for text in (name, other))
        assert f"is under {here}, " in reason
        assert f"only under {there}, " in reason


def test_each_component_has_its_own_prefix():
    names = [f"model.{tower}.layers.{i}.q.w" for tower in ("visual", "llm") for i in range(3)]
    others = [f"visual.layers.{i}.q.w" for i in range(3)]
    others += [f"llm.model.layers.{i}.q.w" for i in range(3)] + ["llm.embed.w"]
    prefixes = align([*names, "embed.w"], others)
    assert {prefixes(name) for name in names[:3]} == {*others[:3]}
    assert prefixes("embed.w") == "llm.embed.w"
    swaps = {(swap.drop, swap.add): swap.names for swap in prefixes.swaps(names)}
    assert swaps["model.", ""] == 3


def test_a_swap_needs_layers_that_repeat():
    """The head of a classifier is not the base's pooler, whose last words are the same."""
    assert not align(["classifier.dense.weight"], ["pooler.dense.weight"]).found


def test_a_larger_component_decides_where_a_small_one_fits_twice():
    others = [f"text.{name}" for name in LAYERS] + ["text.norm.weight", "vision.norm.weight"]
    prefixes = align([*LAYERS, "norm.weight"], others)
    assert not prefixes.ties
    assert prefixes("norm.weight") == "text.norm.weight"


def test_names_are_looked_up_and_not_compared(monkeypatch):
    """A component costs as many look-ups as it has names, however many the others are."""
    calls = []
    plain = Prefix.__call__
    monkeypatch.setattr(Prefix, "__call__", lambda self, name: calls.append(1) or plain(self, name))
    names = [f"layers.{i}.q.weight" for i in range(2000)]
    prefixes = align(names, [f"model.{name}" for name in names])
    assert prefixes.found == {"layers.": Prefix("", "model.")}
    assert len(calls) == len(names)
