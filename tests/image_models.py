"""Tiny random models of diffusers, one of each family, and its converters of their single files."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from dialects import tensors_of


@dataclass
class Case:
    """A tiny model, and diffusers' converter of its single file."""

    name: str
    model: str
    converter: str | None
    config: dict[str, Any]
    prefix: str = "model.diffusion_model."
    written: dict[str, str] = field(default_factory=dict)
    """Widths that the converter has written in, and the tiny model's."""
    extra: tuple[str, ...] = ()
    """Tensors of the single file that the model lacks."""
    dialect: str = "original"
    without: tuple[str, ...] = ()
    """Buffers of the model that no file has."""
    numbers: dict[str, int] = field(default_factory=dict)
    judged: bool = True


UNET = {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 2, "cross_attention_dim": 16}
XL = UNET | {
    "block_out_channels": (8, 16, 24),
    "attention_head_dim": (1, 2, 3),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
REFINER = XL | {
    "block_out_channels": (8, 16, 16, 24),
    "attention_head_dim": 1,
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 2, 2),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
IO = {"in_channels": 4, "out_channels": 4}
FLUX = HEADS | {
    "in_channels": 8,
    "num_single_layers": 3,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}
WAN = HEADS | IO | {"text_dim": 10, "freq_dim": 8, "ffn_dim": 40}
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "out_channels": 4,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}
CASES = [
    Case(
        "Stable Diffusion 1 and 2",
        "UNet2DConditionModel",
        "convert_ldm_unet_checkpoint",
        UNET | {"block_out_channels": (8, 16, 24, 24), "attention_head_dim": 2},
    ),
    Case("Stable Diffusion XL", "UNet2DConditionModel", "convert_ldm_unet_checkpoint", XL),
    Case(
        "Stable Diffusion XL refiner",
        "UNet2DConditionModel",
        "convert_ldm_unet_checkpoint",
        REFINER,
    ),
    *(
        Case(
            "Stable Diffusion 3",
            "SD3Transformer2DModel",
            "convert_sd3_transformer_checkpoint_to_diffusers",
            SD3 | {"dual_attention_layers": dual},
        )
        for dual in ((), (0, 1))
    ),
    Case(
        "Flux.1",
        "FluxTransformer2DModel",
        "convert_flux_transformer_checkpoint_to_diffusers",
        FLUX | {"pooled_projection_dim": 10, "guidance_embeds": True},
        written={"inner_dim = 3072": "inner_dim = 32"},
    ),
    Case(
        "Flux.2",
        "Flux2Transformer2DModel",
        "convert_flux2_transformer_checkpoint_to_diffusers",
        FLUX | {"timestep_guidance_channels": 8, "axes_dims_rope": (4, 4, 4, 4)},
        prefix="",
    ),
    Case(
        "Chroma",
        "ChromaTransformer2DModel",
        "convert_chroma_transformer_checkpoint_to_diffusers",
        FLUX
        | {
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 20,
            "approximator_layers": 2,
        },
        written={"inner_dim = 3072": "inner_dim = 32"},
    ),
    *(
        Case("Wan", "WanTransformer3DModel", "convert_wan_transformer_to_diffusers", WAN | more)
        for more in ({}, {"image_dim": 12, "added_kv_proj_dim": 32})
    ),
    Case(
        "HunyuanVideo",
        "HunyuanVideoTransformer3DModel",
        "convert_hunyuan_video_transformer_to_diffusers",
        HEADS
        | IO
        | {
            "num_single_layers": 2,
            "text_embed_dim": 12,
            "pooled_projection_dim": 10,
            "rope_axes_dim": (4, 6, 6),
        },
        prefix="",
        written={"hidden_size = 3072": "hidden_size = 32"},
    ),
    Case(
        "Z-Image",
        "ZImageTransformer2DModel",
        "convert_z_image_transformer_checkpoint_to_diffusers",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 6, 6],
            "axes_lens": [8, 8, 8],
        },
        extra=("norm_final.weight",),
        dialect="comfyui",
    ),
    Case(
        "Lumina 2",
        "Lumina2Transformer2DModel",
        "convert_lumina2_to_diffusers",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "axes_dim_rope": (2, 2, 4),
            "axes_lens": (8, 8, 8),
            "cap_feat_dim": 12,
        },
        prefix="",
        written={"q_dim = 2304": "q_dim = 32", "v_dim = 768": "v_dim = 16"},
        extra=("norm_final.weight",),
    ),
    Case(
        "AuraFlow",
        "AuraFlowTransformer2DModel",
        "convert_auraflow_transformer_checkpoint_to_diffusers",
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
        prefix="",
    ),
    Case(
        "Sana",
        "SanaTransformer2DModel",
        "convert_sana_transformer_to_diffusers",
        IO
        | {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 8,
        },
        extra=("pos_embed", "y_embedder.y_embedding"),
    ),
    Case(
        "Cosmos 2 and Anima",
        "CosmosTransformer3DModel",
        "convert_cosmos_transformer_checkpoint_to_diffusers",
        HEADS
        | IO
        | {
            "text_embed_dim": 12,
            "adaln_lora_dim": 8,
            "max_size": (4, 8, 8),
            "extra_pos_embed_type": None,
        },
        prefix="net.",
    ),
    Case(
        "Krea 2",
        "Krea2Transformer2DModel",
        "convert_krea2_transformer_checkpoint_to_diffusers",
        HEADS
        | {
            "in_channels": 8,
            "num_key_value_heads": 1,
            "intermediate_size": 40,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 24,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    Case(
        "LTX-Video",
        "LTXVideoTransformer3DModel",
        "convert_ltx_transformer_checkpoint_to_diffusers",
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 12,
        },
    ),
    Case(
        "AutoencoderKL",
        "AutoencoderKL",
        "convert_ldm_vae_checkpoint",
        {
            "block_out_channels": (8, 8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "latent_channels": 4,
        },
        prefix="first_stage_model.",
    ),
    Case(
        "PixArt",
        "PixArtTransformer2DModel",
        None,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "sample_size": 8,
            "caption_channels": 12,
            "use_additional_conditions": False,
        },
        without=("pos_embed.pos_embed",),
    ),
    Case(
        "CogVideoX",
        "CogVideoXTransformer3DModel",
        None,
        IO
        | {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 4,
            "use_rotary_positional_embeddings": True,
        },
    ),
    Case(
        "HiDream",
        "HiDreamImageTransformer2DModel",
        "convert_hidream_transformer_to_diffusers",
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": [12, 10],
            "text_emb_dim": 6,
            "axes_dims_rope": (4, 4),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1],
        },
        dialect="diffusers",
    ),
    Case(
        "LTX-2",
        "LTX2VideoTransformer3DModel",
        "convert_ltx2_transformer_to_diffusers",
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 12,
        },
    ),
    Case(
        "HunyuanVideo 1.5",
        "HunyuanVideo15Transformer3DModel",
        None,
        HEADS
        | IO
        | {
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "text_embed_2_dim": 10,
            "image_embed_dim": 8,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
    Case(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        None,
        HEADS | {"in_channels": 8, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6)},
        dialect="diffusers",
    ),
]


def read_by_diffusers(case, theirs, config):
    """Convert a single file with diffusers' own converter, at the tiny model's widths."""
    from diffusers.loaders import single_file_utils

    source = inspect.getsource(getattr(single_file_utils, case.converter))
    for written, tiny in case.written.items():
        assert written in source
        source = source.replace(written, tiny)
    scope = dict(vars(single_file_utils))
    exec(source, scope)
    file = {case.prefix + key: tensor for key, tensor in tensors_of(theirs).items()}
    file |= {case.prefix + key: file[next(iter(file))] for key in case.extra}
    return scope[case.converter](file, config=config)
