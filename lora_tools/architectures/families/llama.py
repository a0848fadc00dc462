"""Llama and Mistral, and Granite and SmolLM3, whose rows llama.cpp pairs as it does theirs."""

from dataclasses import replace

from lora_tools.architectures.decoders import META, TOOLS, gguf, gguf_layer, like_llama, torchtune
from lora_tools.architectures.tables import Table

PAIRED: Table = gguf(gguf_layer(pairs=True))

LLAMA = replace(
    like_llama(
        "Llama",
        ("llama", "mistral"),
        {"meta": META, "torchtune": torchtune(pairs=True), "gguf": PAIRED, **TOOLS},
    ),
    named="llama|mistral",
)
GRANITE = like_llama("Granite", ("granite",), {"gguf": PAIRED})
SMOLLM3 = like_llama("SmolLM3", ("smollm3",), {"gguf": PAIRED})
