"""Mixtral: experts one by one on disk, stacked in transformers 5's memory and in GGUF."""

from lora_tools.architectures.decoders import ATTENTION, decoder, gguf, rotated
from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.tables import being, norm, one, rows, same

MOE = "block_sparse_moe."
EXPERT = f"{MOE}experts.*."


def stack(path: str) -> RowLayout:
    """Return the layout of a layer of every expert, in one tensor that is a parameter."""
    return rows(f"{EXPERT}{path}", stacked=True, tensors=(("", "weight"),))


MIXTRAL = Family(
    "Mixtral",
    hub="transformers",
    containers=MODEL,
    dialects={
        "stacked": decoder(
            {
                **same(ATTENTION),
                "mlp.gate": one(f"{MOE}gate", role="router"),
                "mlp.experts.gate_up_proj": stack("w{1,3}"),
                "mlp.experts.down_proj": stack("w2"),
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
    tie=Tie("model.embed_tokens", "lm_head"),
)
