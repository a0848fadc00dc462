"""Lumina Image 2.0."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import Table, being, norm, rows, same

BLOCK: Table = {
    "attention.qkv": rows("attn.to_{q,k,v}", shares="in 1 1"),
    "attention.out": "attn.to_out.0",
    "attention.{q,k}_norm": norm("attn.norm_{q,k}"),
    "feed_forward.w{1,2,3}": "feed_forward.linear_{1,2,3}",
    "attention_norm2": norm("norm2"),
    **being("norm", "ffn_norm{1,2}"),
}
MODULATED: Table = {
    **BLOCK,
    "attention_norm1": norm("norm1.norm"),
    "adaLN_modulation.1": "norm1.linear",
}

LUMINA2 = Family(
    "Lumina 2",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            **same("x_embedder"),
            "cap_embedder.0": norm("time_caption_embed.caption_embedder.0"),
            "cap_embedder.1": "time_caption_embed.caption_embedder.1",
            "t_embedder.mlp.{0,2}": "time_caption_embed.timestep_embedder.linear_{1,2}",
            "{layers,noise_refiner}.#.": ("{layers,noise_refiner}.#.", MODULATED),
            "context_refiner.#.": (
                "context_refiner.#.",
                {**BLOCK, "attention_norm1": norm("norm1")},
            ),
            "final_layer.{adaLN_modulation.1,linear}": "norm_out.linear_{1,2}",
        }
    },
    blocks={"layers": (26,), "noise_refiner": (2,), "context_refiner": (2,)},
    columns={"attn.to_q": (2304,)},
    named="lumina",
    types=("Lumina2Transformer2DModel",),
    drops={"original": ("norm_final.weight",)},
    encoders=(Encoder("Gemma 2", "text_encoder", "gemma2_2b", "lora_te_"),),
)
