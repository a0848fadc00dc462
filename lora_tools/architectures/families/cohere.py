"""Cohere's Command R and its second generation: attention and MLP side by side, under one norm."""

from dataclasses import replace

from lora_tools.architectures import decoders
from lora_tools.architectures.decoders import (
    ATTENTION,
    GATED,
    GGUF_QK_NORMS,
    PLAIN,
    QK_NORMS,
    gguf,
    like_llama,
)
from lora_tools.architectures.tables import Table

LAYER: Table = {"attn_{q,k,v,output}": ATTENTION, "ffn_{gate,up,down}": GATED}
TIE = decoders.TIE._replace(always=True)

COHERE = replace(
    like_llama(
        "Cohere",
        ("cohere",),
        {"gguf": gguf({**LAYER, **GGUF_QK_NORMS}, head=False)},
        {**PLAIN, **QK_NORMS},
    ),
    named="command-?r|c4ai",
    ids={"gguf": "command-r"},
    tie=TIE,
)
COHERE2 = replace(
    like_llama("Cohere 2", ("cohere2",), {"gguf": gguf(LAYER, head=False)}),
    named="command-?r7b|command-a",
    tie=TIE,
)
