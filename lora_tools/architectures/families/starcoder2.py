"""StarCoder2: Llama's attention, and an MLP of two layers."""

from lora_tools.architectures.decoders import ATTENTION, TIE, decoder, gguf
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import norm, same

STARCODER2 = Family(
    "StarCoder2",
    hub="transformers",
    containers=MODEL,
    dialects={
        "gguf": gguf(
            {
                "attn_{q,k,v,output}": ATTENTION,
                "ffn_{up,down}": "mlp.{c_fc,c_proj}",
                "ffn_norm": norm("post_attention_layernorm"),
            }
        )
    },
    modules=decoder(same(ATTENTION, "mlp.{c_fc,c_proj}")),
    named="starcoder-?2",
    types=("starcoder2",),
    ids={"gguf": "starcoder2"},
    tie=TIE,
)
