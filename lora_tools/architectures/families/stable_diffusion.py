"""Stable Diffusion 1.x, 2.x and XL with its refiner: UNets of which nothing but names differs."""

from collections.abc import Collection, Mapping

from lora_tools.architectures.blocks import RESNET, spatial
from lora_tools.architectures.family import UNET, BlockNames, Encoder, Family
from lora_tools.architectures.tables import Table, norm

BLOCKS = BlockNames(
    "original",
    {
        "input_blocks.#.": ("IN{:02}",),
        "middle_block.": ("MID", "M00"),
        "output_blocks.#.": ("OUT{:02}",),
    },
)
"""As supermerger and LoRA Block Weight have them."""


def unet(
    levels: int, down: Collection[int], up: Collection[int], upsamplers: Mapping[int, int]
) -> Table:
    """Return the UNet of so many levels, some with attention on the way down, some up.

    ``upsamplers``: the place of each in its block. The original numbers blocks through, diffusers
    by level and kind. 1.x and 2.x have one transformer at each place, the others several.
    """
    attention = spatial("0" if levels == 4 and 0 in down else "#")
    table: dict[str, str | tuple[str, Table]] = {
        "time_embed.{0,2}": "time_embedding.linear_{1,2}",
        "label_emb.0.{0,2}": "add_embedding.linear_{1,2}",
        "input_blocks.0.0": "conv_in",
        "out.2": "conv_out",
        "middle_block.{0,2}.": ("mid_block.resnets.{0,1}.", RESNET),
        "middle_block.1.": ("mid_block.attentions.0.", attention),
    }
    for i in range(levels):
        for j in range(2):
            block = f"input_blocks.{3 * i + j + 1}"
            table[f"{block}.0."] = (f"down_blocks.{i}.resnets.{j}.", RESNET)
            if i in down:
                table[f"{block}.1."] = (f"down_blocks.{i}.attentions.{j}.", attention)
        for j in range(3):
            block = f"output_blocks.{3 * i + j}"
            table[f"{block}.0."] = (f"up_blocks.{i}.resnets.{j}.", RESNET)
            if i in up:
                table[f"{block}.1."] = (f"up_blocks.{i}.attentions.{j}.", attention)
        if i < levels - 1:
            table[f"input_blocks.{3 * i + 3}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
            table[f"output_blocks.{3 * i + 2}.{upsamplers[i]}.conv"] = (
                f"up_blocks.{i}.upsamplers.0.conv"
            )
    return {**table, "out.0": norm("conv_norm_out")}


SD = Family(
    "Stable Diffusion 1 and 2",
    hub="diffusers",
    containers=UNET,
    block_names=BLOCKS,
    dialects={"original": unet(4, (0, 1, 2), (1, 2, 3), {0: 1, 1: 2, 2: 2})},
    columns={"attn2.to_{k,v}": (768, 1024)},
    named=r"stable-diffusion-v?[12]|sd[-_]?v?[12](?!\d)",
    encoders=(
        Encoder(
            "CLIP",
            "text_encoder",
            "clip_l",
            "lora_te_",
            ("cond_stage_model.transformer.", "cond_stage_model.model."),
        ),
    ),
)
SDXL = Family(
    "Stable Diffusion XL",
    hub="diffusers",
    containers=UNET,
    block_names=BLOCKS,
    dialects={"original": unet(3, (1, 2), (0, 1), {0: 2, 1: 2})},
    columns={"attn2.to_{k,v}": (2048,)},
    named="sdxl|xl[-_]base|stable-diffusion-xl",
    encoders=(
        Encoder(
            "CLIP", "text_encoder", "clip_l", "lora_te1_", ("conditioner.embedders.0.transformer.",)
        ),
        Encoder(
            "CLIP",
            "text_encoder_2",
            "clip_g",
            "lora_te2_",
            # The refiner has this one alone.
            ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
        ),
    ),
)
REFINER = Family(
    "Stable Diffusion XL refiner",
    hub="diffusers",
    containers=UNET,
    block_names=BLOCKS,
    dialects={"original": unet(4, (1, 2), (1, 2), {0: 1, 1: 2, 2: 2})},
    columns={"attn2.to_{k,v}": (1280,)},
    named="refiner",
)
