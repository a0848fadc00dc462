"""T5, Flan-T5 and UMT5; as text encoders of pipelines they have no decoder."""

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import Table, being, same

LAYER: Table = {
    **same(
        "layer.#.{SelfAttention,EncDecAttention}.{q,k,v,o}",
        "layer.#.DenseReluDense.{wi,wi_0,wi_1,wo}",
    ),
    **being("norm", "layer.#.layer_norm"),
    **being("embedding", "layer.0.SelfAttention.relative_attention_bias"),
}

T5 = Family(
    "T5",
    hub="transformers",
    containers=MODEL,
    modules={
        **being("embedding", "shared", "{encoder,decoder}.embed_tokens"),
        **being("norm", "{encoder,decoder}.final_layer_norm"),
        **being("head", "lm_head"),
        "{encoder,decoder}.block.#.": ("{encoder,decoder}.block.#.", LAYER),
    },
    named="t5",
    types=("t5", "umt5", "mt5"),
    tie=Tie("shared", "lm_head"),
)
