"""Stable Cascade, of which no table is known: only what stands before its paths."""

from lora_tools.architectures.family import ContainerPrefix, Encoder, Family

HUB = ("diffusers",)

CASCADE = Family(
    "Stable Cascade",
    hub="diffusers",
    containers={
        "diffusers": ContainerPrefix("prior.", HUB),
        "kohya": ContainerPrefix("lora_prior_unet_", HUB),
    },
    named="cascade",
    encoders=(Encoder("CLIP", "text_encoder", "clip_g", "lora_prior_te_"),),
)
