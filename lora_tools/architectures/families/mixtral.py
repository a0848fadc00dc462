"""Mixtral: experts one by one on disk, stacked in transformers 5's memory and in GGUF."""

from lora_tools.architectures.decoders import ATTENTION, TIE, decoder, gguf, rotated, stack
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import being, norm, one, same

MOE = "block_sparse_moe."
EXPERT = f"{MOE}experts.*."

MIXTRAL = Family(
    "Mixtral",
    hub="transformers",
    containers=MODEL,
    dialects={
        "stacked": decoder(
            {
                **same(ATTENTION),
                "mlp.gate": one(f"{MOE}gate", role="router"),
                "mlp.experts.gate_up_proj": stack(EXPERT + "w{1,3}"),
                "mlp.experts.down_proj": stack(EXPERT + "w2"),
            }
        ),
        "gguf": gguf(
            {
                **rotated("attn_@", pairs=True),
                "attn_{v,output}": "self_attn.{v,o}_proj",
                "ffn_norm": norm("post_attention_layernorm"),
                "ffn_gate_inp": one(f"{MOE}gate", role="router"),
                "ffn_{gate,up,down}_exps": one(f"{EXPERT}w{{1,3,2}}", stacked=True),
            }
        ),
    },
    modules=decoder({**same(ATTENTION), **being("router", f"{MOE}gate")}),
    named="mixtral",
    types=("mixtral",),
    ids={"gguf": "llama"},
    tie=TIE,
)
