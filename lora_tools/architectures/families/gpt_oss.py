"""gpt-oss: experts stored as (expert, in, out), gate in even columns and up in odd ones."""

from lora_tools.architectures.decoders import ATTENTION, TIE, decoder, gguf, stack
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import being, norm, one, same

GATE_UP, DOWN = "mlp.experts.*.{gate,up}_proj", "mlp.experts.*.down_proj"

GPT_OSS = Family(
    "gpt-oss",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": decoder(
            {
                **same(ATTENTION),
                **being("router", "mlp.router"),
                **being("parameter", "self_attn.sinks"),
                "mlp.experts.gate_up_proj": stack(GATE_UP, groups="rows", transposed=True),
                "mlp.experts.gate_up_proj_bias": stack(GATE_UP, "bias", groups="rows"),
                "mlp.experts.down_proj": stack(DOWN, transposed=True),
                "mlp.experts.down_proj_bias": stack(DOWN, "bias"),
            }
        ),
        # Of its experts llama.cpp has other stacks, into which it puts no LoRA.
        "gguf": gguf(
            {
                "attn_{q,k,v,output}": ATTENTION,
                "ffn_gate_inp": one("mlp.router", role="router"),
                "post_attention_norm": norm("post_attention_layernorm"),
            }
        ),
    },
    named="gpt[-_]?oss",
    types=("gpt_oss",),
    ids={"gguf": "gpt-oss"},
    tie=TIE,
)
