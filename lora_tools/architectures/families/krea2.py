"""Krea 2."""

from lora_tools.architectures.family import DIT, Family
from lora_tools.architectures.tables import Table, norm, one

BLOCK: Table = {
    "attn.w{q,k,v,o}": "attn.{to_q,to_k,to_v,to_out.0}",
    "attn.gate": "attn.to_gate",
    "attn.qknorm.{q,k}norm": norm("attn.norm_{q,k}", "scale"),
    "mlp.{gate,up,down}": "ff.{gate,up,down}",
    "{pre,post}norm": norm("norm{1,2}", "scale"),
}

KREA2 = Family(
    "Krea 2",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "first": "img_in",
            "tmlp.{0,2}": "time_embed.linear_{1,2}",
            "tproj.1": "time_mod_proj",
            "txtmlp.0": norm("txt_in.norm", "scale"),
            "txtmlp.{1,3}": "txt_in.linear_{1,2}",
            "txtfusion.projector": "text_fusion.projector",
            "txtfusion.{layerwise,refiner}_blocks.#.": (
                "text_fusion.{layerwise,refiner}_blocks.#.",
                BLOCK,
            ),
            "blocks.#.": (
                "transformer_blocks.#.",
                {
                    **BLOCK,
                    "mod.lin": one("scale_shift_table", role="parameter", shapes=((-1,), (6, -1))),
                },
            ),
            "last.linear": "final_layer.linear",
            "last.norm": norm("final_layer.norm", "scale"),
            "last.modulation.lin": one("final_layer.scale_shift_table", role="parameter"),
        }
    },
    blocks={"transformer_blocks": (28,)},
    named=r"krea[-_. ]?2",
    types=("Krea2Transformer2DModel",),
)
