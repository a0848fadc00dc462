"""Chroma: Flux.1 without modulation, which one network guides instead."""

from lora_tools.architectures.blocks import (
    FLUX_ATTENTION,
    FLUX_MLP,
    SINGLE,
    SINGLE_NORMS,
    SINGLE_OUT,
)
from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import Table, norm, same

GUIDANCE: Table = {
    **same("{in,out}_proj"),
    "layers.#.{in,out}_layer": "layers.#.linear_{1,2}",
    "norms.#": norm("norms.#", "scale"),
}

CHROMA = Family(
    "Chroma",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "distilled_guidance_layer.": ("distilled_guidance_layer.", GUIDANCE),
            "double_blocks.#.": ("transformer_blocks.#.", {**FLUX_ATTENTION, **FLUX_MLP}),
            "single_blocks.#.": (
                "single_transformer_blocks.#.",
                {**SINGLE_NORMS, "linear1": SINGLE, "linear2": SINGLE_OUT},
            ),
            "final_layer.linear": "proj_out",
        }
    },
    blocks={"transformer_blocks": (19,), "single_transformer_blocks": (38,)},
    named="chroma",
    types=("ChromaTransformer2DModel",),
    like="Flux.1",
    encoders=(Encoder("T5", "text_encoder", "t5xxl", "lora_te_"),),
)
