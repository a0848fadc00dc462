"""Phi-3 and Phi-4: Llama with fused projections, everywhere."""

from lora_tools.architectures.decoders import FUSED, GATE_UP, QKV, TIE, gguf
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import norm

PHI3 = Family(
    "Phi-3",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": FUSED,
        "gguf": gguf(
            {
                "attn_qkv": QKV,
                "attn_output": "self_attn.o_proj",
                "ffn_up": GATE_UP,
                "ffn_down": "mlp.down_proj",
                "ffn_norm": norm("post_attention_layernorm"),
            }
        ),
    },
    named=r"phi-?[34]",
    types=("phi3",),
    ids={"gguf": "phi3"},
    tie=TIE,
)
