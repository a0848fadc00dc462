"""MiniMax-H3, whose shards and whose files for ComfyUI order rows in two ways of one shape."""

from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.tables import Table, halves, norm, rows, same


def table(qkv: RowLayout) -> Table:
    """Return the table of a dialect with this layout of queries, keys and values."""
    block: Table = {
        "attn.qkv_proj": qkv,
        "attn.out_proj": "attn.to_out.0",
        "attn.{q,k}_norm": norm("attn.norm_{q,k}"),
        "norm{1,2}": norm("norm{1,2}"),
        "mlp.fc1": halves("ff.net.0.proj"),
        "mlp.fc2": "ff.net.2",
        **same("adaln_proj.linear"),
    }
    return {
        "blocks.#.": ("transformer_blocks.#.", block),
        "token_refiner.blocks.#.": ("token_refiner.refiner_blocks.#.", block),
        "token_refiner.{final_norm,norm}": norm("token_refiner.{final_norm,norm}"),
        "time_embedder.proj_{in,out}": "time_embedder.linear_{1,2}",
        "{video,audio}_patch_proj": "{proj_in,audio_proj_in}",
        "condition_proj": "context_embedder",
        "final_layer.norm": norm("norm_out.norm"),
        "final_layer.adaln_proj.linear": "norm_out.linear",
        "final_layer.{video,audio}_out": "{proj_out,audio_proj_out}",
    }


DROPS = ("rope.inv_freq",)

MINIMAX_H3 = Family(
    "MiniMax-H3",
    hub="diffusers",
    containers={**DIT, "comfyui": ContainerPrefix("diffusion_model.", ("comfyui",))},
    dialects={
        "original": table(rows("attn.to_{q,k,v}", groups="heads")),
        "comfyui": table(rows("attn.to_{q,k,v}")),
    },
    blocks={"transformer_blocks": (50,)},
    named="minimax[-_]?h3",
    drops={"original": DROPS, "comfyui": DROPS},
    encoders=(Encoder("Qwen3", "text_encoder", "qwen3vl_32b", "lora_te_"),),
)
