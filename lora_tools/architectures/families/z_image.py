"""Z-Image: ComfyUI's files fuse queries, keys and values; its original names are diffusers'."""

from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import Table, being, norm, rows, same

BLOCK: Table = {
    "attention.qkv": rows("attention.to_{q,k,v}", ratio=3),
    "attention.out": "attention.to_out.0",
    "attention.{q,k}_norm": norm("attention.norm_{q,k}"),
    **being("norm", "{attention,ffn}_norm{1,2}"),
    **same("feed_forward.w{1,2,3}", "adaLN_modulation.0"),
}

Z_IMAGE = Family(
    "Z-Image",
    hub="diffusers",
    containers={**DIT, "comfyui": ContainerPrefix("diffusion_model.", ("diffusers", "comfyui"))},
    dialects={
        "comfyui": {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.": ("all_final_layer.2-1.", same("linear", "adaLN_modulation.1")),
            **{
                f"{kind}.#.": (f"{kind}.#.", BLOCK)
                for kind in ("layers", "noise_refiner", "context_refiner")
            },
            **same("t_embedder.mlp.{0,2}", "cap_embedder.1"),
            **being("norm", "cap_embedder.0"),
            **being("parameter", "{x,cap}_pad_token"),
        }
    },
    blocks={"layers": (30,), "noise_refiner": (2,), "context_refiner": (2,)},
    columns={"attention.to_q": (3840,)},
    named="z[-_]?image",
    types=("ZImageTransformer2DModel",),
    drops={"comfyui": ("norm_final.weight",)},
    encoders=(Encoder("Qwen3", "text_encoder", "qwen3_4b", "lora_te_"),),
)
