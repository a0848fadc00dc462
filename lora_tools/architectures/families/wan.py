"""Wan 2.1 and 2.2, of which nothing but names differs. norm2 and norm3 change places."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import Table, norm, one, same

ATTENTION: Table = {
    "{q,k,v,o}": "{to_q,to_k,to_v,to_out.0}",
    "{k,v}_img": "add_{k,v}_proj",
    "norm_{q,k}": norm("norm_{q,k}"),
    "norm_k_img": norm("norm_added_k"),
}
BLOCK: Table = {
    "self_attn.": ("attn1.", ATTENTION),
    "cross_attn.": ("attn2.", ATTENTION),
    "ffn.{0,2}": "ffn.net.{0.proj,2}",
    "norm3": norm("norm2"),
    "modulation": one("scale_shift_table", role="parameter"),
}
IMAGE = "condition_embedder.image_embedder."

WAN = Family(
    "Wan",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            **same("patch_embedding", "vace_patch_embedding"),
            "{text,time}_embedding.0": "condition_embedder.{text,time}_embedder.linear_1",
            "{text,time}_embedding.2": "condition_embedder.{text,time}_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.{0,4}": norm(IMAGE + "norm{1,2}"),
            "img_emb.proj.{1,3}": IMAGE + "ff.net.{0.proj,2}",
            "img_emb.emb_pos": one(IMAGE + "pos_embed", role="parameter"),
            "blocks.#.": ("blocks.#.", BLOCK),
            "vace_blocks.#.": (
                "vace_blocks.#.",
                {**BLOCK, "{before,after}_proj": "proj_{in,out}"},
            ),
            "head.head": "proj_out",
            "head.modulation": one("scale_shift_table", role="parameter"),
        }
    },
    blocks={"blocks": (30, 40)},
    named="wan",
    types=("WanTransformer3DModel",),
    siblings=("transformer_2",),  # 2.2's for low noise
    encoders=(Encoder("T5", "text_encoder", "umt5xxl", "lora_te_"),),
)
