"""Embeddings, heads and new tokens: a merged model has the logits of the live PeftModel."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_tools import Fixed, read, shrink
from lora_tools.adapter import write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model
from lora_tools.verbs.convert import convert
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
IDS = torch.tensor([[1, 3, 97, 5, 2, 99, 4, 50]])
Q = ["q_proj"]
BOTH = ["embed_tokens", "lm_head"]
NEW = 7
"""How many tokens a resized vocabulary has more."""


def llama(*, tied: bool):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
    counts = {"num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 64}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=100, **sizes, **counts, **TOKENS, tie_word_embeddings=tied)
    )
    return loud(model)


def loud(model):
    """Give the weights a size at which every wrong one is heard in the logits."""
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def trained(model, folder: Path, fields: dict[str, Any], *, new: int = 0) -> PeftModel:
    """Save the model and an adapter of it, all of whose weights are random."""
    model.save_pretrained(folder / "base")
    if new:
        model.resize_token_embeddings(100 + new, mean_resizing=False)
    model.config._name_or_path = model.name_or_path = str(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, **fields)).eval()
        for weight in live.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.2)
        live.save_pretrained(folder / "adapter")
    return live


def logits(model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def check(live: PeftModel, folder: Path, ids: torch.Tensor = IDS, **options) -> dict[str, Any]:
    """Merge, compare the logits with the live model's, and return the configuration."""
    made = plan(
        open_model(folder / "base"),
        [WeightedAdapter(read(folder / "adapter"))],
        MergeOptions(**options),
    )
    merge(made).write(folder / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    wanted, got = logits(live, ids), logits(loaded.eval(), ids)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert verify(open_model(folder / "out").tensors, made).passed
    return json.loads((folder / "out" / "config.json").read_text())


# What an adapter does to a tied base, and whether the two are one afterwards.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "saved-embedding": ({"modules_to_save": ["embed_tokens"]}, False),
    "saved-head": ({"modules_to_save": ["lm_head"]}, False),
    "saved-both": ({"modules_to_save": BOTH}, False),
    "saved-ensured": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "saved-both-ensured": ({"modules_to_save": BOTH, "ensure_weight_tying": True}, True),
    "lora-embedding": ({"target_modules": [*Q, "embed_tokens"]}, False),
    "lora-head": ({"target_modules": [*Q, "lm_head"]}, False),
    "lora-both": ({"target_modules": [*Q, *BOTH]}, False),
    "lora-ensured": ({"target_modules": [*Q, "embed_tokens"], "ensure_weight_tying": True}, True),
    "lora-head-ensured": ({"target_modules": [*Q, "lm_head"], "ensure_weight_tying": True}, True),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [3, 97, 5]}}, True),
    "tokens-list": ({"trainable_token_indices": [3, 97, 5]}, True),
    "tokens-head": ({"trainable_token_indices": {"lm_head": [3, 97]}}, False),
    "tokens-both": (
        {"trainable_token_indices": {"embed_tokens": [3, 97], "lm_head": [3, 97]}},
        True,
    ),
    "tokens-of-each": (
        {"trainable_token_indices": {"embed_tokens": [3, 97, 5], "lm_head": [4, 5]}},
        False,
    ),
}
RESIZED: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing-else": ({}, True),
    "saved-embedding": ({"modules_to_save": ["embed_tokens"]}, False),
    "saved-both": ({"modules_to_save": BOTH}, False),
    "lora-both": ({"target_modules": [*Q, *BOTH]}, False),
    "lora-ensured": ({"target_modules": [*Q, "embed_tokens"], "ensure_weight_tying": True}, True),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [3, 101, 106]}}, True),
}


def on_both(cases: dict[str, tuple[dict[str, Any], bool]]) -> list[Any]:
    """Return the cases on a tied base, and on one that is not where there is nothing to ensure."""
    return [
        pytest.param(fields, tied, tied and stays, id=f"{name}-{'tied' if tied else 'untied'}")
        for name, (fields, stays) in cases.items()
        for tied in ((True,) if "ensure_weight_tying" in fields else (True, False))
    ]


@pytest.mark.parametrize(("fields", "tied", "stays"), on_both(CASES))
def test_each_end_is_what_peft_makes_of_it(fields, tied, stays, tmp_path):
    live = trained(llama(tied=tied), tmp_path, {"target_modules": Q} | fields)
    config = check(live, tmp_path)
    assert config["tie_word_embeddings"] is stays
    keys = {key for file in (tmp_path / "out").glob("*.safetensors") for key in load_file(file)}
    assert ("lm_head.weight" in keys) is not config["tie_word_embeddings"]


@pytest.mark.parametrize(("fields", "tied", "stays"), on_both(RESIZED))
def test_a_resized_vocabulary_is_read_whatever_it_is_saved_as(fields, tied, stays, tmp_path):
    """PEFT saves up to three tensors per module, and the embeddings below updates and tokens."""
    live = trained(llama(tied=tied), tmp_path, {"target_modules": Q} | fields, new=NEW)
    config = check(live, tmp_path, torch.tensor([[1, 3, 101, 106, 99, 100, 5]]))
    assert config["vocab_size"] == 100 + NEW
    assert config["tie_word_embeddings"] is stays


@pytest.mark.parametrize("saved", [["wte"], ["wte", "lm_head"]])
def test_other_names_of_embeddings_are_known(saved, tmp_path):
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}
    model = loud(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)))
    fields = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": saved}
    assert check(trained(model, tmp_path, fields), tmp_path)["tie_word_embeddings"] is False


def test_a_vision_language_model_says_it_in_both_parts_of_its_configuration(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 100}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    parts = {"text_config": text, "vision_config": vision}
    config = Gemma3Config(**parts, mm_tokens_per_image=1, image_token_index=98)
    model = loud(Gemma3ForConditionalGeneration(config))
    live = trained(model, tmp_path, {"target_modules": Q, "modules_to_save": ["embed_tokens"]})
    merged = check(live, tmp_path)
    assert merged["tie_word_embeddings"] is merged["text_config"]["tie_word_embeddings"] is False


def test_two_that_are_one_may_be_written_as_two(tmp_path):
    live = trained(llama(tied=True), tmp_path, {"target_modules": Q})
    assert check(live, tmp_path, untie=True)["tie_word_embeddings"] is False


def test_tokens_that_older_versions_save_twice_stay_one(tmp_path):
    """PEFT 0.18 saves those of the head, too, where both have the same."""
    tokens = {"embed_tokens": [3, 97], "lm_head": [3, 97]}
    fields = {"target_modules": Q, "trainable_token_indices": tokens}
    live = trained(llama(tied=True), tmp_path, fields)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    delta = "token_adapter.trainable_tokens_delta"
    twice = tensors[f"base_model.model.model.embed_tokens.{delta}"]
    save_file(tensors | {f"base_model.model.lm_head.{delta}": twice.clone()}, file)
    assert check(live, tmp_path)["tie_word_embeddings"] is True


def test_a_head_of_an_encoder_with_a_decoder_stays_tied(tmp_path):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=100, **sizes))
    trained(model, tmp_path, {"target_modules": ["q", "lm_head"]})
    weighted = [WeightedAdapter(read(tmp_path / "adapter"))]
    with pytest.raises(UnsupportedError, match="scales its outputs"):
        plan(open_model(tmp_path / "base"), weighted)


def test_disjoint_tokens_of_two_adapters_are_merged_together(tmp_path):
    torch.manual_seed(0)
    model = llama(tied=True)
    model.save_pretrained(tmp_path / "base")
    rows = {"one": [3, 97], "two": [5], "again": [5, 97]}
    for name, tokens in rows.items():
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        fields = {"target_modules": Q, "trainable_token_indices": {"embed_tokens": tokens}}
        trained(fresh, tmp_path / name, fields)
    base = open_model(tmp_path / "base")
    weighted = {name: WeightedAdapter(read(tmp_path / name / "adapter")) for name in rows}
    merge(plan(base, [weighted["one"], weighted["two"]])).write(tmp_path / "out")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    for name in ("one", "two"):
        live = PeftModel.from_pretrained(wanted, tmp_path / name / "adapter")
        wanted = live.merge_and_unload()
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(got), logits(wanted), atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"rows 97 are replaced by .*one.* and by .*again"):
        plan(base, [weighted["one"], weighted["again"]])


def test_a_head_that_has_fewer_rows_than_its_embedding_is_refused(tmp_path):
    model = llama(tied=True)
    fields = {"target_modules": Q, "modules_to_save": ["embed_tokens"]}
    trained(model, tmp_path, fields, new=NEW)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: t for key, t in tensors.items() if "lm_head" not in key}, file)
    with pytest.raises(UnsupportedError, match="another number of rows than lm_head"):
        plan(open_model(tmp_path / "base"), [WeightedAdapter(read(tmp_path / "adapter"))])


def test_tokens_beyond_the_vocabulary_are_named(tmp_path):
    fields = {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [3, 97]}}
    trained(llama(tied=True), tmp_path, fields)
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    config["trainable_token_indices"] = {"embed_tokens": [3, 500]}
    file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="tokens 500 of"):
        plan(open_model(tmp_path / "base"), [WeightedAdapter(read(tmp_path / "adapter"))])


@pytest.mark.parametrize("verb", ["shrink", "convert"])
@pytest.mark.parametrize(
    ("fields", "new"),
    [
        (CASES["lora-ensured"][0], 0),
        (CASES["tokens-of-each"][0], 0),
        (RESIZED["saved-both"][0], NEW),
        (RESIZED["tokens"][0], NEW),
    ],
    ids=["lora-ensured", "tokens-of-each", "resized-both", "resized-tokens"],
)
def test_rewritten_they_are_what_peft_loads(fields, new, verb, tmp_path):
    live = trained(llama(tied=True), tmp_path, {"target_modules": Q} | fields, new=new)
    source = read(tmp_path / "adapter")
    made = shrink(source, Fixed(3)) if verb == "shrink" else convert(source, format_named("peft"))
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", made.manifest, ((c.module, c.update) for c in made), like=source)
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again")
    )
    assert before.keys() == after.keys()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if new:
        base.resize_token_embeddings(100 + new, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(base, tmp_path / "again").eval()
    wanted = logits(live)
    assert torch.allclose(logits(loaded), wanted, atol=1e-4 * float(wanted.abs().max()))
