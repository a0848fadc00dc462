"""Tiny language models of the real transformers, and fine-tunes of them by noise of low rank."""

from functools import cache
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

LATENT = {
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
}
"""DeepSeek's: a dense layer, then experts; queries and keys of low rank."""
GPT = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "num_heads": 4,
    "intermediate_size": 24,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}

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
    "deepseek-v3": ("DeepseekV3Config", SMALL | LATENT),
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
    "gemma": ("GemmaConfig", HEADS),
    "olmo": ("OlmoConfig", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
    "cohere": ("CohereConfig", GROUPED),
    "cohere2": ("Cohere2Config", GROUPED),
    "glm": ("GlmConfig", HEADS | {"pad_token_id": 0}),
    "glm4": ("Glm4Config", HEADS | {"pad_token_id": 0}),
    "stablelm": ("StableLmConfig", GROUPED),
    "starcoder2": ("Starcoder2Config", GROUPED),
    "granite": ("GraniteConfig", GROUPED),
    "smollm3": ("SmolLM3Config", GROUPED | {"pad_token_id": 0}),
    "falcon-7b": (
        "FalconConfig",
        {
            "vocab_size": 48,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
        },
    ),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 2}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 48,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 32,
        },
    ),
    "mpt": (
        "MptConfig",
        {"vocab_size": 48, "d_model": 16, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    ),
    "opt": ("OPTConfig", SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "gpt-bigcode": ("GPTBigCodeConfig", GPT),
    "codegen": ("CodeGenConfig", GPT | {"rotary_dim": 2}),
    "dbrx": (
        "DbrxConfig",
        {
            "vocab_size": 48,
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 32,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 3, "moe_top_k": 2},
        },
    ),
    "roberta": ("RobertaConfig", SMALL),
    "vit": ("ViTConfig", VISION),
    "clip": ("CLIPTextConfig", SMALL),
    "clip-vision": ("CLIPVisionConfig", VISION),
    "siglip": ("SiglipVisionConfig", VISION),
    "glm4-moe": (
        "Glm4MoeConfig",
        HEADS
        | {
            "moe_intermediate_size": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "pad_token_id": 0,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        HEADS
        | {"num_local_experts": 3, "intermediate_size_mlp": 28, "interleave_moe_layer_step": 2},
    ),
    "minimax": ("MiniMaxConfig", HEADS | EXPERTS),
    "phimoe": ("PhimoeConfig", GROUPED | EXPERTS),
    "deepseek-v2": ("DeepseekV2Config", SMALL | LATENT),
    "falcon-h1": (
        "FalconH1Config",
        HEADS
        | {
            "mamba_d_ssm": 16,
            "mamba_n_heads": 4,
            "mamba_d_head": 4,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "nemotron-h": (
        "NemotronHConfig",
        HEADS
        | {
            "hybrid_override_pattern": "M*-E",
            "layers_block_type": ["mamba", "attention", "mlp", "moe"],
            "num_hidden_layers": 4,
            "mamba_num_heads": 4,
            "mamba_head_dim": 4,
            "ssm_state_size": 8,
            "n_groups": 1,
            "n_routed_experts": 4,
            "moe_intermediate_size": 12,
            "moe_shared_expert_intermediate_size": 20,
            "num_experts_per_tok": 2,
        },
    ),
    "nemotron": ("NemotronConfig", GROUPED),
    "qwen3-next": (
        "Qwen3NextConfig",
        HEADS
        | ROUTED
        | {
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        GROUPED
        | EXPERTS
        | {
            "shared_intermediate_size": 20,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "bamba": (
        "BambaConfig",
        GROUPED
        | {
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "qwen3-vl": ("Qwen3VLConfig", {"text_config": HEADS | {**ROPE}, "vision_config": QWEN3_VISION}),
    "qwen3-vl-moe": (
        "Qwen3VLMoeConfig",
        {
            "text_config": HEADS | ROUTED | {"moe_intermediate_size": 12, **ROPE},
            "vision_config": QWEN3_VISION,
        },
    ),
    "gemma3-vl": (
        "Gemma3Config",
        {"vision_config": VISION, "text_config": HEADS, "mm_tokens_per_image": 4},
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "vision_config": VISION
            | {"model_type": "siglip_vision_model", "projection_dim": 16, "vision_use_head": False},
            "text_config": HEADS | {"model_type": "gemma"},
            "projection_dim": 16,
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "vision_config": VISION | {"model_type": "pixtral"},
            "text_config": HEADS | {"model_type": "mistral"},
        },
    ),
    "mllama": (
        "MllamaConfig",
        {
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "intermediate_size": 24,
                "image_size": 16,
                "patch_size": 8,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
                "max_num_tiles": 1,
            },
            "text_config": GROUPED | {"cross_attention_layers": [1], "pad_token_id": 0},
        },
    ),
    "llama4-vl": (
        "Llama4Config",
        {
            "vision_config": VISION
            | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
            "text_config": HEADS
            | {"num_local_experts": 3, "intermediate_size_mlp": 28, "interleave_moe_layer_step": 2},
        },
    ),
    "internvl": (
        "InternVLConfig",
        {
            "vision_config": VISION | {"image_size": [16, 16], "patch_size": [8, 8]},
            "text_config": GROUPED | {"model_type": "qwen2"},
        },
    ),
}
"""By family: the class of its configuration, and what makes it tiny."""


BODIES = {"vit", "clip", "clip-vision", "siglip"}
"""Models that have no head."""


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
    if name in BODIES:
        return transformers.AutoModel
    if "vision_config" in CONFIGS[name][1]:
        return transformers.AutoModelForImageTextToText
    special = {
        "t5": transformers.AutoModelForSeq2SeqLM,
        "bert": transformers.AutoModelForMaskedLM,
        "roberta": transformers.AutoModelForMaskedLM,
    }
    return special.get(name, transformers.AutoModelForCausalLM)


@cache
def is_tied(name: str) -> bool:
    """Whether its head is its embedding."""
    with torch.device("meta"):
        model = auto(name).from_config(config(name))
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


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
