"""Real models of transformers, merged on disk and loaded back: the logits of the live PeftModel."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lora_tools import Threads, read
from lora_tools.files.opening import open_checkpoint
from lora_tools.model import open_model
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

SMALL = {"num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}
TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def llama(**more):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, **SMALL, **TOKENS, **more))


def gpt2():
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))


def bert():
    sizes = {"hidden_size": 48, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **sizes, **SMALL))


def mixtral():
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=100, **sizes, **experts, **SMALL, **TOKENS))


def qwen3_moe():
    sizes = {"hidden_size": 32, "moe_intermediate_size": 32, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=100, **sizes, **experts, **SMALL, **TOKENS)
    )


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {
    "llama": (llama, LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR)),
    "llama-dora": (llama, LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, use_dora=True)),
    "llama-rslora-head": (
        llama,
        LoraConfig(r=4, use_rslora=True, target_modules=[*LINEAR[:2], "embed_tokens", "lm_head"]),
    ),
    "gpt2": (
        gpt2,
        LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    ),
    "gpt2-dora": (
        gpt2,
        LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True),
    ),
    "bert": (
        bert,
        LoraConfig(
            r=4,
            lora_bias=True,
            target_modules=["query", "value", "dense"],
            exclude_modules=["pooler.dense"],
            modules_to_save=["classifier"],
        ),
    ),
    "mixtral": (
        mixtral,
        LoraConfig(
            r=2,
            target_modules=["q_proj", "gate"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
    # Whose experts are square, and which PEFT saves as `gate.weight` and bare `gate_up_proj`.
    "qwen3-moe-all-linear": (qwen3_moe, LoraConfig(r=2, target_modules="all-linear")),
    "mixtral-router": (
        mixtral,
        LoraConfig(r=2, target_modules=["q_proj", "gate", "w1", "w2", "w3"]),
    ),
}


def trained(model, config, folder: Path):
    """Return a PeftModel with random factors, saved to a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(model, config).eval()
        for name, weight in live.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                torch.nn.init.normal_(weight, std=0.1)
            elif "magnitude" in name:
                weight.data *= 1 + 0.1 * torch.rand_like(weight)
            elif "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.1)
        live.save_pretrained(folder)
    return live


@pytest.mark.parametrize("shards", ["1GB", "50KB"])
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_computes_what_the_live_one_does(name, shards, tmp_path):
    build, config = MODELS[name]
    model = build().eval()
    model.save_pretrained(tmp_path / "base", max_shard_size=shards)
    live = trained(model, config, tmp_path / "adapter")
    recipe = plan(open_model(tmp_path / "base"), [WeightedAdapter(read(tmp_path / "adapter"))])
    report = merge(recipe).write(tmp_path / "out", Threads(2))
    assert not report.left_out
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(100, (2, 12))
    with torch.no_grad():
        wanted, got = live(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    before = model.get_base_model() if hasattr(model, "get_base_model") else None
    assert before is None or not torch.allclose(got, before(input_ids=ids).logits)
    assert verify(open_checkpoint(tmp_path / "out"), recipe).passed


def test_peft_and_transformers_save_a_merge_that_verify_accepts(tmp_path):
    build, config = MODELS["mixtral"]
    model = build().eval()
    model.save_pretrained(tmp_path / "base")
    live = trained(model, config, tmp_path / "adapter")
    live.merge_and_unload().save_pretrained(tmp_path / "theirs")
    recipe = plan(open_model(tmp_path / "base"), [WeightedAdapter(read(tmp_path / "adapter"))])
    proof = verify(open_checkpoint(tmp_path / "theirs"), recipe)
    assert proof.passed, proof.to_text()
    experts = [v for v in proof.verdicts if ".experts." in v.tensor]
    assert len(experts) == 24
    assert {v.outcome for v in experts} == {"exact"}


def test_a_grown_vocabulary_is_merged_and_announced(tmp_path):
    model = llama(tie_word_embeddings=False).eval()
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("old")
    model.resize_token_embeddings(107, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    live = trained(model, config, tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").write_text("new")
    recipe = plan(open_model(tmp_path / "base"), [WeightedAdapter(read(tmp_path / "adapter"))])
    assert recipe.grown
    report = merge(recipe).write(tmp_path / "out")
    assert any("107" in note for note in report.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 107
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "new"
    (tmp_path / "out" / "tokenizer.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 100, 106, 5, 2]])
    with torch.no_grad():
        wanted, got = live(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
