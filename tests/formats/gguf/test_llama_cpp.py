"""llama.cpp loads what is written, and computes what peft computes."""

import numpy as np
import pytest
import torch
from judges import judge
from llama_cpp import WORDS, log_probabilities, write_base

from lora_tools.adapter import read, write
from lora_tools.formats.registry import format_named
from lora_tools.verbs.convert import convert

transformers, peft = judge("transformers"), judge("peft")
judge("xllamacpp")

SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def made(model_type, *, tied):
    """A model of transformers in which everything matters."""
    scale = {"logit_scale": 1.0} if model_type == "cohere" else {}
    settings = SMALL | scale | {"tie_word_embeddings": tied}
    config = transformers.AutoConfig.for_model(model_type, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    return model


def tuned(base, targets):
    """An adapter of all that one alpha does not say as it is."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=targets,
        rank_pattern={"o_proj": 2},
        alpha_pattern={targets[-1] if "down_proj" not in targets else "down_proj": 3},
        use_rslora=True,
    )
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    return model


def converted(folder, base):
    adapter = read(folder / "peft", base=base.config.to_dict())
    plan = convert(adapter, format_named("gguf"))
    (folder / "gguf").mkdir()
    updates = plan.report("convert").watch(plan)
    write(folder / "gguf", plan.manifest, updates, like=adapter, format=plan.source.format)
    return folder / "gguf" / "adapter_model.gguf"


@pytest.mark.parametrize(
    ("model_type", "arch", "targets"),
    [
        ("llama", "llama", [*SPLIT, "embed_tokens", "lm_head"]),
        ("mistral", "llama", SPLIT),
        ("qwen2", "qwen2", [*SPLIT, "embed_tokens", "lm_head"]),
        ("qwen3", "qwen3", SPLIT),
        ("phi3", "phi3", [*FUSED, "embed_tokens", "lm_head"]),
        ("stablelm", "stablelm", SPLIT),
        ("olmo", "olmo", SPLIT),
        ("olmo2", "olmo2", [*SPLIT, "lm_head"]),
        ("glm4", "glm4", [*SPLIT[:4], "gate_up_proj", "down_proj"]),
        ("cohere", "command-r", SPLIT),
    ],
)
def test_the_next_word_is_as_likely_as_with_peft(tmp_path, model_type, arch, targets):
    base = made(model_type, tied=arch == "command-r")  # which has no other head
    file = write_base(tmp_path / "base.gguf", arch, base)
    ids = torch.randint(3, WORDS, (1, 24))
    with torch.no_grad():
        plain = base(ids).logits[0, -1].double().log_softmax(-1).numpy()
    model = tuned(base, targets)
    with torch.no_grad():
        wanted = model(ids).logits[0, -1].double().log_softmax(-1).numpy()
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    adapter = converted(tmp_path, base)
    assert np.abs(log_probabilities(file, ids[0].tolist()) - plain).max() < 1e-4
    found = log_probabilities(file, ids[0].tolist(), adapter)
    assert np.abs(found - wanted).max() < 1e-4  # two implementations in float32
    assert np.abs(wanted - plain).max() > 1


@pytest.mark.parametrize(
    ("arch", "targets"),
    [("gemma", SPLIT), ("starcoder2", [*SPLIT[:4], "c_fc", "c_proj"])],
)
def test_an_adapter_is_its_merged_model(tmp_path, arch, targets):
    # llama.cpp looks its activation up in a table of float16, so only its own words compare.
    base = made(arch, tied=True)
    file = write_base(tmp_path / "base.gguf", arch, base)
    model = tuned(base, targets)
    model.save_pretrained(tmp_path / "peft")
    adapter = converted(tmp_path, base)
    merged = write_base(tmp_path / "merged.gguf", arch, model.merge_and_unload())
    ids = torch.randint(3, WORDS, (24,)).tolist()
    plain, found, wanted = (
        log_probabilities(*arguments)
        for arguments in ((file, ids), (file, ids, adapter), (merged, ids))
    )
    assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(wanted - plain).max() > 1
