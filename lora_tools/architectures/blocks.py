"""Pieces of tables that several families share."""

from fractions import Fraction

from lora_tools.architectures.tables import Table, being, norm, one, rows, same

# ---- diffusion transformers: original names to diffusers'

QKV = rows("attn.to_{q,k,v}", ratio=3)
ADDED = rows("attn.add_{q,k,v}_proj", ratio=3)
TIME = ".{timestep,text,guidance}_embedder.linear_"

FLUX_ATTENTION: Table = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": ADDED,
    "{img,txt}_attn.proj": "attn.{to_out.0,to_add_out}",
    "img_attn.norm.{query,key}_norm": norm("attn.norm_{q,k}", "scale"),
    "txt_attn.norm.{query,key}_norm": norm("attn.norm_added_{q,k}", "scale"),
}
"""The two streams' attention of Flux and the models after it."""

FLUX_MLP: Table = {
    "{img,txt}_mlp.0": one("{ff,ff_context}.net.0.proj", ratio=4),
    "{img,txt}_mlp.2": one("{ff,ff_context}.net.2", ratio=Fraction(1, 4)),
}

SINGLE = rows("attn.to_{q,k,v}", "proj_mlp", shares="in in in 1", ratio=7)
"""Queries, keys, values and the MLP's input of a block with one stream."""

SINGLE_OUT = one("proj_out", ratio=Fraction(1, 5))
"""What comes out of it, of attention and MLP together."""

SINGLE_NORMS: Table = {"norm.{query,key}_norm": norm("attn.norm_{q,k}", "scale")}

# ---- UNets of Stable Diffusion

RESNET: Table = {
    "in_layers.0": norm("norm1"),
    "out_layers.0": norm("norm2"),
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def spatial(blocks: str) -> Table:
    """Return a UNet level's attention; ``blocks``: the numbers that its transformers have."""
    before = f"transformer_blocks.{blocks}."
    return {
        **being("norm", "norm", before + "norm{1,2,3}"),
        **same(
            "proj_{in,out}",
            before + "{attn1,attn2}.{to_q,to_k,to_v,to_out.0}",
            before + "ff.net.{0.proj,2}",
        ),
    }
