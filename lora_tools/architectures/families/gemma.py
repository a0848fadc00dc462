"""Gemma 1, 2 and 3, whose heads are their embeddings."""

from dataclasses import replace

from lora_tools.architectures import decoders
from lora_tools.architectures.decoders import (
    GGUF_QK_NORMS,
    PLAIN,
    QK_NORMS,
    SANDWICH,
    gguf,
    gguf_layer,
    like_llama,
    torchtune,
)
from lora_tools.architectures.family import Family
from lora_tools.architectures.tables import Table, norm

LAYER: Table = {**PLAIN, **SANDWICH}
SANDWICHED: Table = {
    **gguf_layer(),
    "post_attention_norm": norm("post_attention_layernorm"),
    "ffn_norm": norm("pre_feedforward_layernorm"),
    "post_ffw_norm": norm("post_feedforward_layernorm"),
}
"""A layer of Gemma 2 and 3 in llama.cpp's names: with norms before and behind."""
TOOLS = {"torchtune": torchtune(pairs=True), **decoders.TOOLS}


def tied(family: Family) -> Family:
    """Return a family whose head is the embedding unless a configuration says otherwise."""
    return replace(family, tie=decoders.TIE._replace(always=True))


GEMMA = tied(like_llama("Gemma", ("gemma",), {**TOOLS, "gguf": gguf(gguf_layer(), head=False)}))
GEMMA2 = tied(
    like_llama("Gemma 2", ("gemma2",), {**TOOLS, "gguf": gguf(SANDWICHED, head=False)}, LAYER)
)
GEMMA3 = tied(
    like_llama(
        "Gemma 3",
        ("gemma3", "gemma3_text"),
        {"gguf": gguf({**SANDWICHED, **GGUF_QK_NORMS})},
        {**LAYER, **QK_NORMS},
    )
)
