"""gpt-oss: experts stored as (expert, in, out), gate in even columns and up in odd ones."""

from typing import Any

from lora_tools.architectures.decoders import ATTENTION, decoder
from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.tables import being, rows, same


def stack(path: str, tensor: str = "weight", **options: Any) -> RowLayout:
    """Return the layout of a layer of every expert, in one tensor that is a parameter."""
    paths = f"mlp.experts.*.{path}_proj"
    return rows(paths, stacked=True, tensors=(("", tensor),), **options)


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
                "mlp.experts.gate_up_proj": stack("{gate,up}", groups="rows", transposed=True),
                "mlp.experts.gate_up_proj_bias": stack("{gate,up}", "bias", groups="rows"),
                "mlp.experts.down_proj": stack("down", transposed=True),
                "mlp.experts.down_proj_bias": stack("down", "bias"),
            }
        )
    },
    named="gpt[-_]?oss",
    types=("gpt_oss",),
    tie=Tie("model.embed_tokens", "lm_head"),
)
