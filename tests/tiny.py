"""Tiny language models of the real transformers, and fine-tunes of them by noise of low rank."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 4}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
ROUTED = {"num_experts": 3, "num_experts_per_tok": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3": ("Gemma3TextConfig", HEADS),
    "phi3": ("Phi3Config", GROUPED | {"pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4}),
    "neox": ("GPTNeoXConfig", SMALL),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": 48,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
    ),
    "bloom": ("BloomConfig", {"vocab_size": 48, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "bert": ("BertConfig", SMALL),
    "t5": (
        "T5Config",
        {"vocab_size": 48, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
    ),
    "mixtral": ("MixtralConfig", GROUPED | EXPERTS),
    "qwen3-moe": ("Qwen3MoeConfig", HEADS | ROUTED | {"moe_intermediate_size": 12}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        GROUPED | ROUTED | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    ),
    "olmoe": ("OlmoeConfig", SMALL | ROUTED),
    "deepseek-v3": (
        "DeepseekV3Config",
        SMALL
        | {
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 12,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 4,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 2,
        },
    ),
    "gpt-oss": ("GptOssConfig", HEADS | EXPERTS),
    "granite-moe": ("GraniteMoeConfig", GROUPED | EXPERTS),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 48,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
        },
    ),
    "jamba": (
        "JambaConfig",
        GROUPED
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("Lfm2Config", GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "llava": ("LlavaConfig", {"vision_config": "CLIPVisionConfig", "text_config": "LlamaConfig"}),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": GROUPED | ROPE,
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 16,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": GROUPED | ROPE,
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "out_hidden_size": 16,
                "num_heads": 4,
                "intermediate_size": 24,
                "patch_size": 4,
                "fullatt_block_indexes": [0],
            },
        },
    ),
}
"""By family: the class of its configuration, and what makes it tiny."""


def config(name: str) -> Any:
    """Return the configuration of a tiny model."""
    kind, settings = CONFIGS[name]
    made = dict(settings)
    for part, size in (("vision_config", VISION), ("text_config", GROUPED)):
        if isinstance(made.get(part), str):
            made[part] = getattr(transformers, made[part])(**size)
    return getattr(transformers, kind)(**made)


def auto(name: str) -> Any:
    """Return the class of transformers that loads such a model."""
    if "vision_config" in CONFIGS[name][1]:
        return transformers.AutoModelForImageTextToText
    special = {"t5": transformers.AutoModelForSeq2SeqLM, "bert": transformers.AutoModelForMaskedLM}
    return special.get(name, transformers.AutoModelForCausalLM)


def pair(name: str, folder: Path, rank: int = 2) -> tuple[Path, Path]:
    """Save a tiny model and a fine-tune of all its weights, and return their folders."""
    torch.manual_seed(0)
    model = auto(name).from_config(config(name))
    folders = folder / "base", folder / "tuned"
    save(model, folders[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise(parameter, rank)
    save(model, folders[1])
    return folders


def save(model: nn.Module, folder: Path) -> None:
    """Save a model as transformers does."""
    model.save_pretrained(folder)


def noise(weight: Tensor, rank: int) -> Tensor:
    """Return an update of low rank, of every matrix of a stack one."""
    if weight.ndim < 2:
        return 0.1 * torch.randn(weight.shape)
    flat = weight if weight.ndim == 3 and weight.shape[1] > 4 else weight.flatten(1)
    *stack, out, inp = flat.shape
    update = torch.randn(*stack, out, rank) @ torch.randn(*stack, rank, inp)
    return 0.05 * update.reshape(weight.shape)
