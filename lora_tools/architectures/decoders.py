"""Decoders like Llama, in the names of every tool. Fine: transformers', with everything apart."""

from collections.abc import Mapping
from typing import Any

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.layout import Interleaved, RowLayout
from lora_tools.architectures.tables import Table, being, norm, one, rows, same

ATTENTION = "self_attn.{q,k,v,o}_proj"
GATED = "mlp.{gate,up,down}_proj"
PLAIN: Table = same(ATTENTION, GATED)
GROUPED = "heads kv_heads kv_heads"
QKV = rows("self_attn.{q,k,v}_proj", shares=GROUPED)
GATE_UP = rows("mlp.{gate,up}_proj")

ENDS: Table = {
    **being("embedding", "model.embed_tokens"),
    **being("norm", "model.norm"),
    **being("head", "lm_head"),
}
NORMS: Table = being("norm", "{input,post_attention}_layernorm")
SANDWICH: Table = being("norm", "{pre,post}_feedforward_layernorm")
QK_NORMS: Table = being("norm", "self_attn.{q,k}_norm")
GGUF_QK_NORMS: Table = {"attn_{q,k}_norm": norm("self_attn.{q,k}_norm")}


def decoder(inside: Table) -> Table:
    """Return the table of a decoder named as Llama, with these modules in a layer."""
    return {**ENDS, "model.layers.#.": ("model.layers.#.", {**NORMS, **inside})}


def bare(inside: Table = PLAIN) -> Table:
    """Return the table of a decoder without its head, which is saved without ``model.``."""
    return {
        "embed_tokens": "model.embed_tokens",
        "norm": norm("model.norm"),
        "layers.#.": ("model.layers.#.", {**NORMS, **inside}),
    }


FUSED: Table = decoder(
    {
        "self_attn.qkv_proj": QKV,
        "mlp.gate_up_proj": GATE_UP,
        **same("self_attn.o_proj", "mlp.down_proj"),
    }
)
"""Phi-3's layout, and vLLM's of every model."""


def rotated(tool: str, *, pairs: bool) -> Table:
    """Return queries and keys by a tool's pattern of names; ``pairs``: in rotating pairs."""
    query, key = (tool.replace("@", part) for part in "qk")
    return {
        query: _ordered("self_attn.q_proj", "heads", pairs=pairs),
        key: _ordered("self_attn.k_proj", "kv_heads", pairs=pairs),
    }


def _ordered(path: str, heads: str, *, pairs: bool) -> RowLayout:
    return one(path, order=Interleaved(heads) if pairs else None)


META: Table = {
    "tok_embeddings": "model.embed_tokens",
    "norm": norm("model.norm"),
    "output": "lm_head",
    "layers.#.": (
        "model.layers.#.",
        {
            **rotated("attention.w@", pairs=True),
            "attention.w{v,o}": "self_attn.{v,o}_proj",
            "feed_forward.w{1,3,2}": GATED,
            "attention_norm": norm("input_layernorm"),
            "ffn_norm": norm("post_attention_layernorm"),
        },
    ),
}


def torchtune(*, pairs: bool) -> Table:
    """Return torchtune's table; ``pairs``: it has queries and keys in rotating pairs."""
    return {
        "tok_embeddings": "model.embed_tokens",
        "norm": norm("model.norm", "scale"),
        "output": "lm_head",
        "layers.#.": (
            "model.layers.#.",
            {
                **rotated("attn.@_proj", pairs=pairs),
                "attn.{v,output}_proj": "self_attn.{v,o}_proj",
                "mlp.w{1,3,2}": GATED,
                "sa_norm": norm("input_layernorm", "scale"),
                "mlp_norm": norm("post_attention_layernorm", "scale"),
            },
        ),
    }


def gguf_layer(*, pairs: bool = False) -> Table:
    """Return a layer in llama.cpp's names; ``pairs``: queries and keys are in rotating pairs."""
    return {
        **rotated("attn_@", pairs=pairs),
        "attn_{v,output}": "self_attn.{v,o}_proj",
        "ffn_{gate,up,down}": GATED,
        "ffn_norm": norm("post_attention_layernorm"),
    }


def gguf(layer: Table, *, head: bool = True) -> Table:
    """Return llama.cpp's table of a decoder, with a head of its own or without one."""
    return {
        "token_embd": "model.embed_tokens",
        "output_norm": norm("model.norm"),
        **({"output": "lm_head"} if head else {}),
        "blk.#.": ("model.layers.#.", {"attn_norm": norm("input_layernorm"), **layer}),
    }


LITGPT: Table = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": norm("model.norm"),
    "lm_head": "lm_head",
    "transformer.h.#.": (
        "model.layers.#.",
        {
            "attn.qkv": QKV,
            "attn.proj": "self_attn.o_proj",
            "mlp.{fc_1,fc_2,proj}": GATED,
            "norm_{1,2}": norm("{input,post_attention}_layernorm"),
        },
    ),
}

MEGATRON: Table = {
    "embedding.word_embeddings": "model.embed_tokens",
    "decoder.final_layernorm": norm("model.norm"),
    "output_layer": "lm_head",
    "decoder.layers.#.": (
        "model.layers.#.",
        {
            "self_attention.linear_qkv": rows(
                "self_attn.{q,k,v}_proj", shares=GROUPED, groups="kv_heads"
            ),
            "self_attention.linear_proj": "self_attn.o_proj",
            "mlp.linear_fc1": GATE_UP,
            "mlp.linear_fc2": "mlp.down_proj",
        },
    ),
}

TOOLS: Mapping[str, Table] = {"litgpt": LITGPT, "megatron": MEGATRON}
TIE = Tie("model.embed_tokens", "lm_head")


def stack(paths: str, tensor: str = "weight", **options: Any) -> RowLayout:
    """Return the layout of a layer of every expert, in one tensor that is a parameter."""
    return rows(paths, stacked=True, tensors=(("", tensor),), **options)


def like_llama(
    name: str, types: tuple[str, ...], dialects: Mapping[str, Table], layer: Table = PLAIN
) -> Family:
    """Return a family named as Llama, with these modules in a layer, in these further dialects.

    llama.cpp calls it by the first of its types.
    """
    return Family(
        name,
        hub="transformers",
        containers=MODEL,
        dialects={"bare": bare(layer), "fused": FUSED, **dialects},
        modules=decoder(layer),
        named=name.lower().replace(" ", "[-_]?"),
        types=types,
        ids={"gguf": types[0]},
        tie=TIE,
    )
