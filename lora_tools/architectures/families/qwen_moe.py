"""Qwen 2 and 3 with experts, and those named as they are: OLMoE, DeepSeek's routed layers."""

from lora_tools.architectures.decoders import ATTENTION, GATED, QK_NORMS, decoder
from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.tables import being, rows, same

SHARED = same("mlp.shared_expert.{gate,up,down}_proj")


def stack(path: str) -> RowLayout:
    """Return the layout of a layer of every expert, in one tensor that is a parameter."""
    return rows(f"mlp.experts.*.{path}_proj", stacked=True, tensors=(("", "weight"),))


QWEN_MOE = Family(
    "Qwen MoE",
    hub="transformers",
    containers=MODEL,
    dialects={
        "stacked": decoder(
            {
                **same(ATTENTION, GATED),
                **QK_NORMS,
                **SHARED,
                **being("router", "mlp.gate", "mlp.shared_expert_gate"),
                "mlp.experts.gate_up_proj": stack("{gate,up}"),
                "mlp.experts.down_proj": stack("down"),
            }
        )
    },
    named=r"qwen.*(moe|a\d+b)",
    types=("qwen2_moe", "qwen3_moe", "olmoe"),
    tie=Tie("model.embed_tokens", "lm_head"),
)
