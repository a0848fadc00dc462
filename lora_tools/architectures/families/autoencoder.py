"""The autoencoder of Stable Diffusion: its decoder is numbered backwards in the original naming."""

from lora_tools.architectures.family import ContainerPrefix, Family
from lora_tools.architectures.tables import Table, norm, one, same

RESNET: Table = {
    "norm{1,2}": norm("norm{1,2}"),
    **same("conv{1,2}"),
    "nin_shortcut": "conv_shortcut",
}
MIDDLE: Table = {
    "mid.block_{1,2}.": ("mid_block.resnets.{0,1}.", RESNET),
    "mid.attn_1.norm": norm("mid_block.attentions.0.group_norm"),
    "mid.attn_1.{q,k,v,proj_out}": one(
        "mid_block.attentions.0.{to_q,to_k,to_v,to_out.0}", shapes=((0, 0, 1, 1), (0, 0))
    ),
}
ENDS: Table = {**same("conv_{in,out}"), "norm_out": norm("conv_norm_out")}

AUTOENCODER_KL = Family(
    "AutoencoderKL",
    hub="diffusers",
    containers={
        "checkpoint": ContainerPrefix("first_stage_model."),
        "comfyui": ContainerPrefix("vae."),
        "diffusers": ContainerPrefix("", ("diffusers",)),
    },
    dialects={
        "original": {
            **same("quant_conv", "post_quant_conv"),
            "encoder.": (
                "encoder.",
                {
                    **ENDS,
                    **MIDDLE,
                    "down.#.block.#.": ("down_blocks.#.resnets.#.", RESNET),
                    "down.#.downsample.conv": "down_blocks.#.downsamplers.0.conv",
                },
            ),
            "decoder.": (
                "decoder.",
                {
                    **ENDS,
                    **MIDDLE,
                    "up.{3,2,1,0}.block.#.": ("up_blocks.{0,1,2,3}.resnets.#.", RESNET),
                    "up.{3,2,1}.upsample.conv": "up_blocks.{0,1,2}.upsamplers.0.conv",
                },
            ),
        }
    },
)
