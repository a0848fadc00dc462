"""Gemma 1, 2 and 3, whose heads are their embeddings."""

from collections.abc import Mapping

from lora_tools.architectures import decoders
from lora_tools.architectures.decoders import (
    FUSED,
    GGUF_QK_NORMS,
    LITGPT,
    MEGATRON,
    PLAIN,
    QK_NORMS,
    SANDWICH,
    bare,
    decoder,
    gguf,
    gguf_layer,
)
from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import Table, norm

SANDWICHED: Table = {
    **gguf_layer(),
    "post_attention_norm": norm("post_attention_layernorm"),
    "ffn_norm": norm("pre_feedforward_layernorm"),
    "post_ffw_norm": norm("post_feedforward_layernorm"),
}
"""A layer of Gemma 2 and 3 in llama.cpp's names: with norms before and behind."""

TOOLS: Mapping[str, Table] = {
    "torchtune": decoders.torchtune(pairs=True),
    "litgpt": LITGPT,
    "megatron": MEGATRON,
}


def gemma(
    name: str,
    types: tuple[str, ...],
    layer: Table,
    dialects: Mapping[str, Table],
) -> Family:
    """Return one of the Gemmas, with these modules in a layer, in these dialects and all tools'."""
    return Family(
        name,
        hub="transformers",
        containers=MODEL,
        dialects={"bare": bare(layer), "fused": FUSED, **dialects},
        modules=decoder(layer),
        named=name.lower().replace(" ", "[-_]?"),
        types=types,
        ids={"gguf": types[0]},
        tie=Tie("model.embed_tokens", "lm_head", always=True),
    )


SANDWICH_LAYER: Table = {**PLAIN, **SANDWICH}

GEMMA = gemma("Gemma", ("gemma",), PLAIN, {**TOOLS, "gguf": gguf(gguf_layer(), head=False)})
GEMMA2 = gemma(
    "Gemma 2", ("gemma2",), SANDWICH_LAYER, {**TOOLS, "gguf": gguf(SANDWICHED, head=False)}
)
GEMMA3 = gemma(
    "Gemma 3",
    ("gemma3", "gemma3_text"),
    {**SANDWICH_LAYER, **QK_NORMS},
    {"gguf": gguf({**SANDWICHED, **GGUF_QK_NORMS})},
)
