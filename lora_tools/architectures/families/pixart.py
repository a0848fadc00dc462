"""PixArt-α, PixArt-Σ and Sana, whose attention is laid out alike."""

from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import Table, norm, one, rows

ATTENTION: Table = {
    "attn.qkv": rows("attn1.to_{q,k,v}", ratio=3),
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.kv_linear": rows("attn2.to_{k,v}"),
    "cross_attn.proj": "attn2.to_out.0",
    "scale_shift_table": one("scale_shift_table", role="parameter"),
}
FINAL: Table = {
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": one("scale_shift_table", role="parameter"),
}
CAPTION = {"y_embedder.y_proj.{fc1,fc2}": "caption_projection.linear_{1,2}"}
SIZES = "adaln_single.emb.{timestep,resolution,aspect_ratio}_embedder.linear_"
DROPS = {"original": ("pos_embed", "y_embedder.y_embedding")}

PIXART = Family(
    "PixArt",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "x_embedder.proj": "pos_embed.proj",
            "{t,csize,ar}_embedder.mlp.0": SIZES + "1",
            "{t,csize,ar}_embedder.mlp.2": SIZES + "2",
            "t_block.1": "adaln_single.linear",
            **CAPTION,
            "blocks.#.": (
                "transformer_blocks.#.",
                {
                    **ATTENTION,
                    "attn.{q,k}_norm": norm("attn1.{q,k}_norm"),
                    "mlp.{fc1,fc2}": "ff.net.{0.proj,2}",
                },
            ),
            **FINAL,
        }
    },
    blocks={"transformer_blocks": (28,)},
    named="pixart",
    types=("PixArtTransformer2DModel",),
    loaders={"comfyui": ContainerPrefix("base_model.model.", ("diffusers",))},
    drops=DROPS,
    encoders=(Encoder("T5", "text_encoder", "t5xxl", "lora_te_"),),
)
SANA = Family(
    "Sana",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "x_embedder.proj": "patch_embed.proj",
            "t_embedder.mlp.{0,2}": "time_embed.emb.timestep_embedder.linear_{1,2}",
            "t_block.1": "time_embed.linear",
            **CAPTION,
            "attention_y_norm": norm("caption_norm"),
            "blocks.#.": (
                "transformer_blocks.#.",
                {
                    **ATTENTION,
                    "mlp.{inverted,point}_conv.conv": "ff.conv_{inverted,point}",
                    "mlp.depth_conv.conv": one("ff.conv_depth", role="depthwise"),
                },
            ),
            **FINAL,
        }
    },
    blocks={"transformer_blocks": (20, 28)},
    named="sana",
    types=("SanaTransformer2DModel",),
    drops=DROPS,
    encoders=(Encoder("Gemma 2", "text_encoder", "gemma2_2b", "lora_te_"),),
)
