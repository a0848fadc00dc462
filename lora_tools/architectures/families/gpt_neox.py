"""GPT-NeoX and Pythia: queries, keys and values take turns head by head."""

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import being, one, rows, same

GPT_NEOX = Family(
    "GPT-NeoX",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": {
            **being("embedding", "gpt_neox.embed_in"),
            **being("norm", "gpt_neox.final_layer_norm"),
            **being("head", "embed_out"),
            "lm_head": one("embed_out", role="head"),  # as transformers 5 has it in memory
            "gpt_neox.layers.#.": (
                "gpt_neox.layers.#.",
                {
                    "attention.query_key_value": rows("attention.{q,k,v}_proj", groups="heads"),
                    **same("attention.dense", "mlp.{dense_h_to_4h,dense_4h_to_h}"),
                    **being("norm", "{input,post_attention}_layernorm"),
                },
            ),
        }
    },
    named="neox|pythia",
    types=("gpt_neox",),
    tie=Tie("gpt_neox.embed_in", "embed_out"),
)
