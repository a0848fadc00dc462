"""Stable Diffusion 3 and 3.5."""

from lora_tools.architectures.blocks import ADDED, QKV
from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import Table, halves, norm, one, rows, same

BLOCK: Table = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    # The last block's context is only scaled and shifted, and its halves are swapped.
    "context_block.adaLN_modulation.1": [
        one("norm1_context.linear", ratio=6),
        halves("norm1_context.linear", ratio=2),
    ],
    "{x,context}_block.mlp.fc1": one("{ff,ff_context}.net.0.proj", ratio=4),
    "{x,context}_block.mlp.fc2": "{ff,ff_context}.net.2",
    "x_block.attn.qkv": QKV,
    "x_block.attn2.qkv": rows("attn2.to_{q,k,v}", ratio=3),
    "context_block.attn.qkv": ADDED,
    "x_block.{attn,attn2}.proj": "{attn,attn2}.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.attn.ln_{q,k}": norm("attn.norm_{q,k}"),
    "x_block.attn2.ln_{q,k}": norm("attn2.norm_{q,k}"),
    "context_block.attn.ln_{q,k}": norm("attn.norm_added_{q,k}"),
}

SD3 = Family(
    "Stable Diffusion 3",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            **same("context_embedder"),
            "pos_embed": one("pos_embed.pos_embed", role="parameter"),
            "x_embedder.proj": "pos_embed.proj",
            "{t,y}_embedder.mlp.0": "time_text_embed.{timestep,text}_embedder.linear_1",
            "{t,y}_embedder.mlp.2": "time_text_embed.{timestep,text}_embedder.linear_2",
            "joint_blocks.#.": ("transformer_blocks.#.", BLOCK),
            "final_layer.linear": "proj_out",
            "final_layer.adaLN_modulation.1": halves("norm_out.linear"),
        }
    },
    blocks={"transformer_blocks": (24, 38)},
    named=r"stable-diffusion-3|sd[-_]?3",
    types=("SD3Transformer2DModel",),
    loaders={"comfyui": ContainerPrefix("base_model.model.", ("diffusers",))},
    encoders=(
        Encoder("CLIP", "text_encoder", "clip_l", "lora_te1_"),
        Encoder("CLIP", "text_encoder_2", "clip_g", "lora_te2_"),
        Encoder("T5", "text_encoder_3", "t5xxl", "lora_te3_"),
    ),
)
