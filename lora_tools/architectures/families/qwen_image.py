"""Qwen-Image and its Edit models: their original names are diffusers'."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import being, same

QWEN_IMAGE = Family(
    "Qwen-Image",
    hub="diffusers",
    containers=DIT,
    modules={
        **same("img_in", "txt_in", "proj_out", "norm_out.linear"),
        **same("time_text_embed.timestep_embedder.linear_{1,2}"),
        **being("norm", "txt_norm"),
        "transformer_blocks.#.": (
            "transformer_blocks.#.",
            {
                **same("{img,txt}_mod.1", "{img,txt}_mlp.net.{0.proj,2}"),
                **same("attn.{to_q,to_k,to_v,to_out.0,to_add_out}", "attn.add_{q,k,v}_proj"),
                **being("norm", "attn.norm_{q,k}", "attn.norm_added_{q,k}"),
            },
        ),
    },
    blocks={"transformer_blocks": (60,)},
    named="qwen[-_]?image",
    types=("QwenImageTransformer2DModel",),
    encoders=(Encoder("Qwen2", "text_encoder", "qwen25_7b", "lora_te_"),),
)
