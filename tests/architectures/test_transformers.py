"""transformers judges the tables of language models: what it saves, loads and splits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dialects import assert_equal, converted, numbers_in, randomised, tensors_of
from judges import judge
from safetensors.torch import load_file

from lora_tools.architectures.families import family
from lora_tools.architectures.numbers import numbers_of

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
NUMBERS = {"heads": 4, "kv_heads": 2}


def model(name, **config):
    transformers = judge("transformers")
    settings = getattr(transformers, f"{name}Config")(**COMMON | config)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(settings).eval()


def llama():
    return numbers_in(model("Llama").state_dict())


def test_the_fused_layout_computes_what_the_split_one_does():
    plain, fused = model("Llama", rope_theta=10000.0), model("Phi3", rope_theta=10000.0)
    made = converted(
        numbers_in(plain.state_dict()), family("Llama"), "transformers", "fused", NUMBERS
    )
    fused.load_state_dict(tensors_of(made), strict=True)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(fused(ids).logits, plain(ids).logits, rtol=0, atol=1e-6)
    apart = converted(made, family("Phi-3"), "transformers", "split", NUMBERS)
    assert_equal(apart, numbers_in(plain.state_dict()))


@pytest.mark.parametrize("dialect", ["meta", "torchtune", "gguf"])
def test_rows_in_rotating_pairs_come_back_by_transformers_permutation(dialect):
    from transformers.core_model_loading import PermuteForRope

    ours = llama()
    made = converted(ours, family("Llama"), "transformers", dialect, NUMBERS)
    names = {
        "meta": "layers.1.attention.w{}.weight",
        "torchtune": "layers.1.attn.{}_proj.weight",
        "gguf": "blk.1.attn_{}.weight",
    }
    for part, heads in (("q", 4), ("k", 2)):
        weight = torch.from_numpy(made[names[dialect].format(part)])
        config = SimpleNamespace(num_attention_heads=heads)
        turned = PermuteForRope()._permute_for_rope(weight, config).numpy()
        assert np.array_equal(turned, ours[f"model.layers.1.self_attn.{part}_proj.weight"])
    assert_equal(converted(made, family("Llama"), dialect, "transformers", NUMBERS), ours)


@pytest.mark.parametrize("dialect", ["bare", "fused", "litgpt", "megatron"])
def test_every_layout_of_llama_undoes_itself(dialect):
    ours = llama()
    if dialect in ("bare", "megatron"):  # no head; norms inside of other layers
        ours = {
            key: array
            for key, array in ours.items()
            if (dialect == "megatron" or key != "lm_head.weight")
            and (dialect == "bare" or "layernorm" not in key)
        }
    made = converted(ours, family("Llama"), "transformers", dialect, NUMBERS)
    assert_equal(converted(made, family("Llama"), dialect, "transformers", NUMBERS), ours)


def test_a_model_without_its_head_is_saved_in_bare_names():
    transformers = judge("transformers")
    whole = model("Llama")
    body = transformers.LlamaModel(whole.config)
    body.load_state_dict(whole.model.state_dict())
    ours = {k: a for k, a in numbers_in(whole.state_dict()).items() if k != "lm_head.weight"}
    made = converted(ours, family("Llama"), "transformers", "bare", NUMBERS)
    assert_equal(made, numbers_in(body.state_dict()))


@pytest.mark.parametrize(
    ("name", "of", "config"),
    [
        ("Mixtral", "Mixtral", {"num_local_experts": 3}),
        (
            "Qwen MoE",
            "Qwen3Moe",
            {
                "num_experts": 3,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
                "head_dim": 8,
            },
        ),
    ],
)
def test_stacked_experts_are_apart_where_transformers_saves_them(name, of, config, tmp_path):
    built = model(of, **config)
    built.save_pretrained(tmp_path)
    apart = numbers_in(load_file(tmp_path / "model.safetensors"))
    stacked = numbers_in(built.state_dict())
    assert_equal(converted(stacked, family(name), "stacked", "transformers"), apart)
    assert_equal(converted(apart, family(name), "transformers", "stacked"), stacked)


def test_gate_and_up_of_gpt_oss_are_sliced_as_its_forward_does():
    built = model("GptOss", head_dim=8, num_local_experts=3, num_experts_per_tok=2)
    stacked = numbers_in(randomised(built).state_dict())
    apart = converted(stacked, family("gpt-oss"), "transformers", "split")
    for tensor, slices in (("gate_up_proj", "weight"), ("gate_up_proj_bias", "bias")):
        whole = stacked[f"model.layers.1.mlp.experts.{tensor}"]
        for number, part in enumerate(("gate", "up")):
            wanted = whole[2][..., number::2].T
            name = f"model.layers.1.mlp.experts.2.{part}_proj.{slices}"
            assert np.array_equal(apart[name], wanted)
    assert_equal(converted(apart, family("gpt-oss"), "split", "transformers"), stacked)


def split_by_neox(fused, config):
    return fused.view(1, 5, config["num_attention_heads"], 24).chunk(3, -1)


def split_by_gpt2(fused, config):
    return fused.split(32, 2)


def split_by_falcon(fused, config):
    from transformers import FalconConfig
    from transformers.models.falcon.modeling_falcon import FalconAttention

    attention = FalconAttention(FalconConfig(**config, vocab_size=8, num_hidden_layers=1), 0)
    query, key, value = attention._split_heads(fused)
    if config.get("new_decoder_architecture"):  # keys and values are repeated for their queries
        group = config["num_attention_heads"] // config["num_kv_heads"]
        return query, key[..., ::group, :], value[..., ::group, :]
    return query, key, value


def split_by_bloom(fused, config):
    from transformers import BloomConfig
    from transformers.models.bloom.modeling_bloom import BloomAttention

    config = {"hidden_size": 32, "n_head": config["num_attention_heads"]}
    heads = BloomAttention(BloomConfig(**config), 0)._reshape(fused)
    return [part.transpose(1, 2) for part in heads]


FALCON = {"hidden_size": 32, "num_attention_heads": 4}
FUSED = [
    ("GPT-NeoX", "gpt_neox.layers.3.attention", "query_key_value", 96, split_by_neox, FALCON),
    ("GPT-2", "transformer.h.3.attn", "c_attn", 96, split_by_gpt2, {"n_head": 4}),
    ("Bloom", "transformer.h.3.self_attention", "query_key_value", 96, split_by_bloom, FALCON),
    *(
        ("Falcon", "transformer.h.3.self_attention", "query_key_value", out, split_by_falcon, c)
        for out, c in (
            (64, FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}),
            (48, FALCON | {"multi_query": True, "new_decoder_architecture": False}),
            (96, FALCON | {"multi_query": False, "new_decoder_architecture": False}),
        )
    ),
]


@pytest.mark.parametrize(("name", "layer", "leaf", "out", "split", "config"), FUSED)
def test_fused_layers_are_split_as_the_models_split_them(name, layer, leaf, out, split, config):
    judge("transformers")
    random = np.random.default_rng(0)
    weight = random.standard_normal((32, out) if leaf == "c_attn" else (out, 32))
    weight = weight.astype(np.float32)
    tensors = {f"{layer}.{leaf}.weight": weight}
    numbers = numbers_of(config)
    apart = converted(tensors, family(name), "transformers", "split", numbers)
    inputs = random.standard_normal((1, 5, 32)).astype(np.float32)
    fused = torch.from_numpy(inputs @ (weight if leaf == "c_attn" else weight.T))
    parts = [inputs @ apart[f"{layer}.{part}_proj.weight"].T for part in "qkv"]
    for found, wanted in zip(parts, split(fused, config), strict=True):
        assert np.allclose(found.reshape(wanted.shape), wanted.detach().numpy(), atol=1e-5)
    assert_equal(converted(apart, family(name), "split", "transformers", numbers), tensors)


@pytest.mark.parametrize(
    ("name", "config", "types"),
    [
        ("Llama", "LlamaConfig", "LlamaForCausalLM"),
        ("Qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
        ("Qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
        ("Gemma", "GemmaConfig", "GemmaForCausalLM"),
        ("Gemma 2", "Gemma2Config", "Gemma2ForCausalLM"),
        ("Gemma 3", "Gemma3TextConfig", "Gemma3ForCausalLM"),
        ("Granite", "GraniteConfig", "GraniteForCausalLM"),
        ("SmolLM3", "SmolLM3Config", "SmolLM3ForCausalLM"),
        ("Phi-3", "Phi3Config", "Phi3ForCausalLM"),
        ("GPT-2", "GPT2Config", "GPT2LMHeadModel"),
        ("GPT-NeoX", "GPTNeoXConfig", "GPTNeoXForCausalLM"),
        ("Falcon", "FalconConfig", "FalconForCausalLM"),
        ("Bloom", "BloomConfig", "BloomForCausalLM"),
        ("BERT", "BertConfig", "BertForMaskedLM"),
        ("T5", "T5Config", "T5ForConditionalGeneration"),
        ("CLIP", "CLIPTextConfig", "CLIPTextModelWithProjection"),
        ("gpt-oss", "GptOssConfig", "GptOssForCausalLM"),
    ],
)
def test_every_layer_of_a_model_is_known_with_its_role(name, config, types):
    """Linear layers, embeddings, norms and heads, as torch has them, are what the table says."""
    transformers = judge("transformers")
    from lora_tools.architectures.index import Candidate, matches

    settings = getattr(transformers, config)()
    settings.num_hidden_layers = settings.num_layers = 2
    with torch.device("meta"):
        built = getattr(transformers, types)(settings)
    known = family(name)
    dialect = "transformers"
    for path, layer in built.named_modules():
        if list(layer.children()) or not list(layer.parameters(recurse=False)):
            continue
        if "experts" in path:  # one parameter, not one layer
            continue
        found = next(matches(path, Candidate(known, dialect)), None)
        assert found is not None, path
        (fine, *_) = found.layout.parts
        role = known.role(fine.path)
        kind = type(layer).__name__
        wanted = {"Embedding": "embedding", "Linear": "linear", "Conv1D": "linear"}.get(kind)
        if "Norm" in kind:
            wanted = "norm"
        if fine.path == getattr(known.tie, "head", None):
            wanted = "head"
        if "outer" in kind:
            wanted = "router"
        assert wanted is None or role == wanted, (path, kind, role)
        assert found.layout.transposed == (kind == "Conv1D"), path


def test_numbers_of_a_configuration():
    assert numbers_of(None) == {}
    assert numbers_of({"n_head": 12}) == {"heads": 12, "kv_heads": 12}
    text = {"num_attention_heads": 8, "num_key_value_heads": 2}
    assert numbers_of({"text_config": text, "num_attention_heads": 3}) == {
        "heads": 8,
        "kv_heads": 2,
    }
    assert numbers_of({"num_attention_heads": "many"}) == {}
    assert json.loads(json.dumps(numbers_of(text))) == {"heads": 8, "kv_heads": 2}
