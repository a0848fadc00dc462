"""Consumers: servers that load adapters under conditions of their own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Consumer:
    """A server that wants one rank, out of a list, for a whole adapter."""

    name: str
    ranks: tuple[int, ...]
    refuses: frozenset[str]
    """Kinds of tensors that it does not load."""


# config/lora.py (MaxLoRARanks), lora/peft_helper.py and lora/lora_model.py of vLLM 0.11.
VLLM = Consumer(
    "vllm",
    (1, 8, 16, 32, 64, 128, 256, 320, 512),
    frozenset({"modules_to_save", "trainable tokens", "bias", "full weight", "DoRA magnitude"}),
)
