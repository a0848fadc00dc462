"""A tool's names of modules and transformers': each the other's inverse, from the tables alone."""

import pytest

from lora_tools.architectures.dialects import (
    candidate_of,
    candidates,
    in_tool,
    in_transformers,
    is_named,
    known_base,
    modules_of,
    stated_heads,
    whole,
)
from lora_tools.architectures.layout import Interleaved, fill
from lora_tools.errors import FormatError, UnsupportedError

TOOLS = ("gguf", "torchtune", "litgpt", "megatron")
MODELS = [each for tool in TOOLS for each in candidates(tool)]
LLAMA = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_there_and_back_is_the_same_module(model):
    found = 0
    for rule in model.family.rules(model.dialect):
        path = fill(rule.path, ["3"] * rule.path.count("#"))
        there = in_transformers(path, (model,))
        if there is None:  # several modules there, or a stack
            assert len(rule.layout.parts) > 1 or rule.layout.stacked, path
            continue
        found += 1
        back = in_tool(there.path, (model,))
        assert back is not None
        assert (back.path, back.order, back.role) == (path, there.order, there.role)
        assert is_named(path, model.dialect)
    assert found > 4


@pytest.mark.parametrize(
    ("kind", "dialect", "order"),
    [
        ("llama", "gguf", Interleaved("kv_heads")),
        ("qwen2", "gguf", None),
        ("llama", "torchtune", Interleaved("kv_heads")),
        ("qwen2", "torchtune", None),
        ("gemma", "torchtune", Interleaved("kv_heads")),
    ],
)
def test_whose_keys_are_stored_in_pairs_is_a_familys_own(kind, dialect, order):
    model = candidate_of({"model_type": kind}, "it", dialect)
    assert in_tool("model.layers.0.self_attn.k_proj", (model,)).order == order


def test_one_name_of_a_file_may_be_of_several_families():
    assert [str(each) for each in candidates("gguf", "llama")] == ["Llama (gguf)", "Mixtral (gguf)"]
    assert candidates("gguf", "nobody's") == ()
    assert modules_of("embedding", "torchtune") == {"tok_embeddings"}


def test_a_language_model_may_be_a_part_of_another():
    assert "model.layers.0.x" in whole("language_model.model.layers.0.x")
    assert "model.layers.0.x" in whole("model.language_model.layers.0.x")
    assert "model.layers.0.x" in whole("layers.0.x")
    assert in_tool("layers.0.self_attn.q_proj", candidates("torchtune")) is None
    text = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert candidate_of(text, "llama.cpp", "gguf").family.name == "Gemma 3"


def test_a_base_that_is_not_known_is_refused():
    with pytest.raises(UnsupportedError, match=r"type gpt2, .* LitGPT calls its layers") as error:
        candidate_of({"model_type": "gpt2"}, "LitGPT", "litgpt")
    assert "llama, mistral" in "".join(error.value.__notes__)
    with pytest.raises(FormatError, match="names no model_type"):
        candidate_of({"a": 1}, "LitGPT", "litgpt")
    with pytest.raises(UnsupportedError, match="depend on the base model"):
        known_base(None, "LitGPT", "litgpt")
    with pytest.raises(FormatError, match="how many heads"):
        stated_heads({"model_type": "llama"})


def test_a_fused_layer_has_its_parts_and_their_rows():
    base = known_base(LLAMA, "Megatron", "megatron")
    module = "decoder.layers.5.self_attention.linear_qkv"
    layout = base.layout(module, ("linear",))
    before = "model.layers.5.self_attn."
    assert [part.path for part in layout.parts] == [f"{before}{part}_proj" for part in "qkv"]
    queries, keys, values = base.rows(module, layout, 12, 4)
    assert queries == (range(4), range(6, 10))
    assert (keys, values) == ((range(4, 11, 6),), (range(5, 12, 6),))
    with pytest.raises(FormatError, match=f"{module}: 13 rows are not those of"):
        base.rows(module, layout, 13, 4)
    assert base.layout("embedding.word_embeddings", ("linear", "head")) is None
    assert base.layout("somebodys.own", ("linear",)) is None


def test_heads_that_do_not_divide_into_groups_are_refused():
    """12 rows of queries divide by 3, four heads do not."""
    heads = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 3}
    base = known_base(heads, "Megatron", "megatron")
    module = "decoder.layers.5.self_attention.linear_qkv"
    with pytest.raises(FormatError, match=r"30 rows are not those of .* in 3 groups"):
        base.rows(module, base.layout(module, ("linear",)), 30, 4)
