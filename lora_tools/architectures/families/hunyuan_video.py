"""HunyuanVideo: Tencent's names, ComfyUI's, which are Flux's, and diffusers'."""

from lora_tools.architectures.blocks import (
    ADDED,
    FLUX_ATTENTION,
    FLUX_MLP,
    QKV,
    SINGLE,
    SINGLE_NORMS,
    SINGLE_OUT,
)
from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import Table, halves, norm, one

REFINER: Table = {
    "norm{1,2}": norm("norm{1,2}"),
    "mlp.{fc1,fc2}": "ff.net.{0.proj,2}",
    "adaLN_modulation.1": one("norm_out.linear", ratio=2),
}


MOD = "{norm1,norm1_context}.linear"
TOKENS = "individual_token_refiner.blocks.#."
REFINED = "token_refiner.refiner_blocks.#."
TENCENT_TEXT: Table = {
    "input_embedder": "proj_in",
    "t_embedder.mlp.{0,2}": "time_text_embed.timestep_embedder.linear_{1,2}",
    "c_embedder.linear_{1,2}": "time_text_embed.text_embedder.linear_{1,2}",
    TOKENS: (
        REFINED,
        {**REFINER, "self_attn_qkv": QKV, "self_attn_proj": "attn.to_out.0"},
    ),
}
COMFYUI_TEXT: Table = {
    "input_embedder": "proj_in",
    "t_embedder.{in,out}_layer": "time_text_embed.timestep_embedder.linear_{1,2}",
    "c_embedder.{in,out}_layer": "time_text_embed.text_embedder.linear_{1,2}",
    TOKENS: (
        REFINED,
        {
            "norm{1,2}": norm("norm{1,2}"),
            "mlp.{0,2}": "ff.net.{0.proj,2}",
            "adaLN_modulation.1": one("norm_out.linear", ratio=2),
            "self_attn.qkv": QKV,
            "self_attn.proj": "attn.to_out.0",
        },
    ),
}
TENCENT_BLOCK: Table = {
    "{img,txt}_mod.linear": one(MOD, ratio=6),
    "{img,txt}_mlp.fc1": one("{ff,ff_context}.net.0.proj", ratio=4),
    "{img,txt}_mlp.fc2": "{ff,ff_context}.net.2",
    "{img,txt}_attn_proj": "attn.{to_out.0,to_add_out}",
    "img_attn_{q,k}_norm": norm("attn.norm_{q,k}"),
    "txt_attn_{q,k}_norm": norm("attn.norm_added_{q,k}"),
}
COMFYUI_BLOCK: Table = {
    **FLUX_ATTENTION,
    **FLUX_MLP,
    "{img,txt}_mod.lin": one(MOD, ratio=6),
}
FINAL: Table = {
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": halves("norm_out.linear"),
}
EMBEDDERS = "time_text_embed.{timestep,guidance}_embedder.linear_"

HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    hub="diffusers",
    containers={**DIT, "comfyui": ContainerPrefix("diffusion_model.", ("comfyui", "original"))},
    dialects={
        "original": {
            "img_in.proj": "x_embedder.proj",
            "{time,guidance}_in.mlp.0": EMBEDDERS + "1",
            "{time,guidance}_in.mlp.2": EMBEDDERS + "2",
            "vector_in.{in,out}_layer": "time_text_embed.text_embedder.linear_{1,2}",
            "txt_in.": ("context_embedder.", TENCENT_TEXT),
            "double_blocks.#.": (
                "transformer_blocks.#.",
                {**TENCENT_BLOCK, "img_attn_qkv": QKV, "txt_attn_qkv": ADDED},
            ),
            "single_blocks.#.": (
                "single_transformer_blocks.#.",
                {
                    "linear1": SINGLE,
                    "linear2": SINGLE_OUT,
                    "{q,k}_norm": norm("attn.norm_{q,k}"),
                    "modulation.linear": one("norm.linear", ratio=3),
                },
            ),
            **FINAL,
        },
        "comfyui": {
            "img_in.proj": "x_embedder.proj",
            "{time,guidance}_in.in_layer": EMBEDDERS + "1",
            "{time,guidance}_in.out_layer": EMBEDDERS + "2",
            "vector_in.{in,out}_layer": "time_text_embed.text_embedder.linear_{1,2}",
            "txt_in.": ("context_embedder.", COMFYUI_TEXT),
            "double_blocks.#.": ("transformer_blocks.#.", COMFYUI_BLOCK),
            "single_blocks.#.": (
                "single_transformer_blocks.#.",
                {
                    **SINGLE_NORMS,
                    "linear1": SINGLE,
                    "linear2": SINGLE_OUT,
                    "modulation.lin": one("norm.linear", ratio=3),
                },
            ),
            **FINAL,
        },
    },
    blocks={"transformer_blocks": (20,), "single_transformer_blocks": (40,)},
    named="hunyuan[-_]?video(?!-?1.5)",
    types=("HunyuanVideoTransformer3DModel",),
    like="Flux.1",
    encoders=(
        Encoder("Llama", "text_encoder", "llama", "lora_te1_"),
        Encoder("CLIP", "text_encoder_2", "clip_l", "lora_te2_"),
    ),
)

MORE: Table = {
    "img_in.proj": "x_embedder.proj",
    "byt5_in.{fc1,fc2,fc3}": "context_embedder_2.linear_{1,2,3}",
    "byt5_in.layernorm": norm("context_embedder_2.norm"),
    "vision_in.proj.{0,4}": norm("image_embedder.norm_{in,out}"),
    "vision_in.proj.{1,3}": "image_embedder.linear_{1,2}",
    "cond_type_embedding": "cond_type_embed",
    **FINAL,
}
TIMES = "time_embed.{timestep_embedder,timestep_embedder_r}.linear_"

HUNYUAN_VIDEO_15 = Family(
    "HunyuanVideo 1.5",
    hub="diffusers",
    containers=HUNYUAN_VIDEO.containers,
    dialects={
        "original": {
            **MORE,
            "{time_in,time_r_in}.mlp.0": TIMES + "1",
            "{time_in,time_r_in}.mlp.2": TIMES + "2",
            "txt_in.": ("context_embedder.", TENCENT_TEXT),
            "double_blocks.#.": (
                "transformer_blocks.#.",
                {
                    **TENCENT_BLOCK,
                    "img_attn_{q,k,v}": "attn.to_{q,k,v}",
                    "txt_attn_{q,k,v}": "attn.add_{q,k,v}_proj",
                },
            ),
        },
        "comfyui": {
            **MORE,
            "{time_in,time_r_in}.in_layer": TIMES + "1",
            "{time_in,time_r_in}.out_layer": TIMES + "2",
            "txt_in.": ("context_embedder.", COMFYUI_TEXT),
            "double_blocks.#.": ("transformer_blocks.#.", COMFYUI_BLOCK),
        },
    },
    blocks={"transformer_blocks": (54,)},
    named="hunyuan[-_]?video-?1.5",
    types=("HunyuanVideo15Transformer3DModel",),
    like="Flux.1",
)
