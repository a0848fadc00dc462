"""OLMo, whose norms have no weights, and OLMo 2, which norms what its layers give."""

from dataclasses import replace

from lora_tools.architectures.decoders import (
    ATTENTION,
    GATED,
    GGUF_QK_NORMS,
    PLAIN,
    QK_NORMS,
    SANDWICH,
    like_llama,
    rotated,
)
from lora_tools.architectures.tables import Table, norm

ENDS: Table = {"token_embd": "model.embed_tokens", "output": "lm_head"}
PAIRED: Table = {
    **rotated("attn_@", pairs=True),
    "attn_{v,output}": "self_attn.{v,o}_proj",
    "ffn_{gate,up,down}": GATED,
}
SECOND: Table = {
    "attn_{q,k,v,output}": ATTENTION,
    "ffn_{gate,up,down}": GATED,
    **GGUF_QK_NORMS,
    "post_attention_norm": norm("post_attention_layernorm"),
    "post_ffw_norm": norm("post_feedforward_layernorm"),
}

OLMO = replace(
    like_llama("OLMo", ("olmo",), {"gguf": {**ENDS, "blk.#.": ("model.layers.#.", PAIRED)}}),
    named=r"olmo(?!.*(moe|-?[23]))",
)
OLMO2 = replace(
    like_llama(
        "OLMo 2",
        ("olmo2",),
        {
            "gguf": {
                **ENDS,
                "output_norm": norm("model.norm"),
                "blk.#.": ("model.layers.#.", SECOND),
            }
        },
        {**PLAIN, **QK_NORMS, **SANDWICH},
    ),
    named="olmo-?2",
)
