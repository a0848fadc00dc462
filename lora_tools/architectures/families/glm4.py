"""GLM-4 in transformers' names: Llama's attention, gate and up fused, four norms."""

from lora_tools.architectures.decoders import ATTENTION, GATE_UP, TIE, decoder, gguf
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import Table, being, norm, same

NORMS: Table = being("norm", "post_self_attn_layernorm", "post_mlp_layernorm")

GLM4 = Family(
    "GLM-4",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": decoder(
            {**same(ATTENTION, "mlp.down_proj"), "mlp.gate_up_proj": GATE_UP, **NORMS}
        ),
        "gguf": gguf(
            {
                "attn_{q,k,v,output}": ATTENTION,
                "ffn_up": GATE_UP,
                "ffn_down": "mlp.down_proj",
                "ffn_norm": norm("post_attention_layernorm"),
                "post_attention_norm": norm("post_self_attn_layernorm"),
                "post_ffw_norm": norm("post_mlp_layernorm"),
            }
        ),
    },
    named="glm-?4(?!.*(v|moe|5))",
    types=("glm4",),
    ids={"gguf": "glm4"},
    tie=TIE,
)
