"""Falcon and Bloom: each group has its queries, a key and a value, whether one head or many."""

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.tables import Table, being, rows, same


def table(qkv: RowLayout) -> Table:
    """Return the table of a model with this layout of queries, keys and values."""
    return {
        **being("embedding", "transformer.word_embeddings"),
        **being("norm", "transformer.ln_f", "transformer.word_embeddings_layernorm"),
        **being("head", "lm_head"),
        "transformer.h.#.": (
            "transformer.h.#.",
            {
                "self_attention.query_key_value": qkv,
                **same("self_attention.dense", "mlp.{dense_h_to_4h,dense_4h_to_h}"),
                **being("norm", "{input,post_attention}_layernorm", "ln_{attn,mlp}"),
            },
        ),
    }


PARTS = "self_attention.{q,k,v}_proj"
TIE = Tie("transformer.word_embeddings", "lm_head", always=True)

FALCON = Family(
    "Falcon",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": table(rows(PARTS, shares="heads kv_heads kv_heads", groups="kv_heads"))
    },
    named="falcon",
    types=("falcon",),
    tie=TIE,
)
BLOOM = Family(
    "Bloom",
    hub="split",
    containers=MODEL,
    dialects={"transformers": table(rows(PARTS, groups="heads"))},
    named="bloom",
    types=("bloom",),
    tie=TIE,
)
