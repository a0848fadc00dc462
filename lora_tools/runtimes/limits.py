"""What a server takes that wants one rank for a whole adapter, and what it refuses."""

# vllm/config/lora.py (MaxLoRARanks), vllm/lora/peft_helper.py and lora_model.py of vLLM 0.33.0.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that a uniform adapter may be filled up to: those that `--max-lora-rank` may be."""

REFUSES = frozenset(
    {"modules_to_save", "trainable tokens", "bias", "full weight", "DoRA magnitude"}
)
"""Kinds of tensors, as manifests call them, that such a server does not load."""
