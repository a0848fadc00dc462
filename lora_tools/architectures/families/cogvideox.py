"""CogVideoX: two norms' modulations alternate in one layer, and norms stand in lists by layer."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import norm, one, rows, same

COGVIDEOX = Family(
    "CogVideoX",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "mixins.patch_embed.": ("patch_embed.", same("proj", "text_proj")),
            "mixins.pos_embed.pos_embedding": one("patch_embed.pos_embedding", role="parameter"),
            "{time,ofs}_embed.0": "{time,ofs}_embedding.linear_1",
            "{time,ofs}_embed.2": "{time,ofs}_embedding.linear_2",
            "transformer.layers.#.": (
                "transformer_blocks.#.",
                {
                    "{input,post_attention}_layernorm": norm("{norm1,norm2}.norm"),
                    "attention.query_key_value": rows("attn1.to_{q,k,v}", ratio=3),
                    "attention.dense": "attn1.to_out.0",
                    "mlp.{dense_h_to_4h,dense_4h_to_h}": "ff.net.{0.proj,2}",
                },
            ),
            "mixins.adaln_layer.adaLN_modulations.#.1": rows(
                "transformer_blocks.#.norm{1,2}.linear", groups="2"
            ),
            "mixins.adaln_layer.{query,key}_layernorm_list.#": norm(
                "transformer_blocks.#.attn1.norm_{q,k}"
            ),
            "transformer.final_layernorm": norm("norm_final"),
            "mixins.final_layer.norm_final": norm("norm_out.norm"),
            "mixins.final_layer.{adaLN_modulation.1,linear}": "{norm_out.linear,proj_out}",
        }
    },
    blocks={"transformer_blocks": (30, 42)},
    named="cogvideo",
    types=("CogVideoXTransformer3DModel",),
    encoders=(Encoder("T5", "text_encoder", "t5xxl", "lora_te_"),),
)
