"""Llama and Mistral, and Granite and SmolLM3, whose rows llama.cpp pairs as it does theirs."""

from lora_tools.architectures import decoders
from lora_tools.architectures.decoders import (
    FUSED,
    LITGPT,
    MEGATRON,
    META,
    bare,
    decoder,
    gguf,
    gguf_layer,
)
from lora_tools.architectures.family import MODEL, Family, Tie

TIE = Tie("model.embed_tokens", "lm_head")

LLAMA = Family(
    "Llama",
    hub="transformers",
    containers=MODEL,
    dialects={
        "bare": bare(),
        "fused": FUSED,
        "meta": META,
        "torchtune": decoders.torchtune(pairs=True),
        "gguf": gguf(gguf_layer(pairs=True)),
        "litgpt": LITGPT,
        "megatron": MEGATRON,
    },
    modules=decoder(decoders.PLAIN),
    named="llama|mistral",
    types=("llama", "mistral"),
    ids={"gguf": "llama"},
    tie=TIE,
)


def alike(name: str) -> Family:
    """Return a family with Llama's names, which only llama.cpp and vLLM are known to have."""
    return Family(
        name,
        hub="transformers",
        containers=MODEL,
        dialects={"bare": bare(), "fused": FUSED, "gguf": gguf(gguf_layer(pairs=True))},
        modules=decoder(decoders.PLAIN),
        named=name.lower(),
        types=(name.lower(),),
        ids={"gguf": name.lower()},
        tie=TIE,
    )


GRANITE, SMOLLM3 = alike("Granite"), alike("SmolLM3")
