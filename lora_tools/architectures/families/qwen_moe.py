"""Qwen 2 and 3 with experts, and those named as they are: OLMoE, DeepSeek's routed layers."""

from lora_tools.architectures.decoders import ATTENTION, GATED, QK_NORMS, TIE, decoder, stack
from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import being, same

SHARED = same("mlp.shared_expert.{gate,up,down}_proj")

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
                "mlp.experts.gate_up_proj": stack("mlp.experts.*.{gate,up}_proj"),
                "mlp.experts.down_proj": stack("mlp.experts.*.down_proj"),
            }
        )
    },
    named=r"qwen.*(moe|a\d+b)",
    types=("qwen2_moe", "qwen3_moe", "olmoe"),
    tie=TIE,
)
