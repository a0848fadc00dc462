"""Qwen 2 and 2.5, and Qwen 3, which norms its queries and keys."""

from dataclasses import replace

from lora_tools.architectures.decoders import (
    GGUF_QK_NORMS,
    PLAIN,
    QK_NORMS,
    TOOLS,
    gguf,
    gguf_layer,
    like_llama,
    torchtune,
)

QWEN2 = replace(
    like_llama(
        "Qwen2",
        ("qwen2",),
        {"torchtune": torchtune(pairs=False), "gguf": gguf(gguf_layer()), **TOOLS},
    ),
    named=r"qwen-?2(?!.*(vl|moe))",
)
QWEN3 = replace(
    like_llama(
        "Qwen3",
        ("qwen3",),
        {"gguf": gguf({**gguf_layer(), **GGUF_QK_NORMS}), **TOOLS},
        {**PLAIN, **QK_NORMS},
    ),
    named=r"qwen-?3(?!.*(vl|moe))",
)
