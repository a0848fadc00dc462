"""Flux.1: dev, schnell, Kontext, Fill, Canny, Depth, Krea."""

from lora_tools.architectures.blocks import (
    ADDED,
    FLUX_ATTENTION,
    FLUX_MLP,
    QKV,
    SINGLE,
    SINGLE_NORMS,
    SINGLE_OUT,
    TIME,
)
from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import halves, one

FLUX1 = Family(
    "Flux.1",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "{time,vector,guidance}_in.in_layer": f"time_text_embed{TIME}1",
            "{time,vector,guidance}_in.out_layer": f"time_text_embed{TIME}2",
            "double_blocks.#.": (
                "transformer_blocks.#.",
                {
                    **FLUX_ATTENTION,
                    **FLUX_MLP,
                    "{img,txt}_mod.lin": one("{norm1,norm1_context}.linear", ratio=6),
                },
            ),
            "single_blocks.#.": (
                "single_transformer_blocks.#.",
                {
                    **SINGLE_NORMS,
                    "linear1": SINGLE,
                    "linear2": SINGLE_OUT,
                    "modulation.lin": one("norm.linear", ratio=3),
                },
            ),
            "final_layer.linear": "proj_out",
            "final_layer.adaLN_modulation.1": halves("norm_out.linear"),
        },
        # Processors of x-flux: the first stream is the image's, the second the text's.
        "xlabs": {
            "double_blocks.#.processor.": (
                "transformer_blocks.#.",
                {
                    "qkv_lora1": QKV,
                    "qkv_lora2": ADDED,
                    "proj_lora{1,2}": "attn.{to_out.0,to_add_out}",
                },
            ),
            "single_blocks.#.processor.": (
                "single_transformer_blocks.#.",
                {"qkv_lora": QKV, "proj_lora": SINGLE_OUT},
            ),
        },
    },
    blocks={"transformer_blocks": (19,), "single_transformer_blocks": (38,)},
    named=r"flux[-_. ]?1|flux(?![-_. ]?[2-9])",
    types=("FluxTransformer2DModel",),
    loaders={"diffusers": ContainerPrefix("")},  # as its authors' control LoRAs are named
    encoders=(
        Encoder("CLIP", "text_encoder", "clip_l", "lora_te1_"),
        Encoder("T5", "text_encoder_2", "t5xxl", "lora_te3_"),
    ),
)
