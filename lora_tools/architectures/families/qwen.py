"""Qwen 2 and 2.5, and Qwen 3, which norms its queries and keys."""

from lora_tools.architectures import decoders
from lora_tools.architectures.decoders import (
    FUSED,
    GGUF_QK_NORMS,
    LITGPT,
    MEGATRON,
    bare,
    decoder,
    gguf,
    gguf_layer,
)
from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import Table

TIE = Tie("model.embed_tokens", "lm_head")

QWEN2 = Family(
    "Qwen2",
    hub="transformers",
    containers=MODEL,
    dialects={
        "bare": bare(),
        "fused": FUSED,
        "torchtune": decoders.torchtune(pairs=False),
        "gguf": gguf(gguf_layer()),
        "litgpt": LITGPT,
        "megatron": MEGATRON,
    },
    modules=decoder(decoders.PLAIN),
    named=r"qwen-?2(?!.*(vl|moe))",
    types=("qwen2",),
    ids={"gguf": "qwen2"},
    tie=TIE,
)
LAYER: Table = {**decoders.PLAIN, **decoders.QK_NORMS}

QWEN3 = Family(
    "Qwen3",
    hub="transformers",
    containers=MODEL,
    dialects={
        "bare": bare(LAYER),
        "fused": FUSED,
        "gguf": gguf({**gguf_layer(), **GGUF_QK_NORMS}),
        "litgpt": LITGPT,
        "megatron": MEGATRON,
    },
    modules=decoder(LAYER),
    named=r"qwen-?3(?!.*(vl|moe))",
    types=("qwen3",),
    ids={"gguf": "qwen3"},
    tie=TIE,
)
