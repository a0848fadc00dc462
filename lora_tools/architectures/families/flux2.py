"""Flux.2: dev, klein 9B and 4B. It shares Flux.1's original names, not its layouts."""

from fractions import Fraction

from lora_tools.architectures.blocks import FLUX_ATTENTION, SINGLE_NORMS
from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import halves, one

FLUX2 = Family(
    "Flux.2",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "{time,guidance}_in.in_layer": (
                "time_guidance_embed.{timestep,guidance}_embedder.linear_1"
            ),
            "{time,guidance}_in.out_layer": (
                "time_guidance_embed.{timestep,guidance}_embedder.linear_2"
            ),
            "double_stream_modulation_{img,txt}.lin": one(
                "double_stream_modulation_{img,txt}.linear", ratio=6
            ),
            "single_stream_modulation.lin": one("single_stream_modulation.linear", ratio=3),
            "double_blocks.#.": (
                "transformer_blocks.#.",
                {
                    **FLUX_ATTENTION,
                    "{img,txt}_mlp.0": one("{ff,ff_context}.linear_in", ratio=6),
                    "{img,txt}_mlp.2": one("{ff,ff_context}.linear_out", ratio=Fraction(1, 3)),
                },
            ),
            "single_blocks.#.": (
                "single_transformer_blocks.#.",
                {
                    **SINGLE_NORMS,
                    "linear1": one("attn.to_qkv_mlp_proj", ratio=9),
                    "linear2": one("attn.to_out", ratio=Fraction(1, 4)),
                },
            ),
            "final_layer.linear": "proj_out",
            "final_layer.adaLN_modulation.1": halves("norm_out.linear"),
        }
    },
    blocks={"transformer_blocks": (5, 8), "single_transformer_blocks": (20, 24, 48)},
    named=r"flux[-_. ]?2|klein",
    types=("Flux2Transformer2DModel",),
    encoders=(Encoder("Llama", "text_encoder", "mistral3_24b", "lora_te_"),),
)
