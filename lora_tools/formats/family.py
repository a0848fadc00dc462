"""Base models whose layers transformers names as Llama's, for files in other tools' names."""

from collections.abc import Mapping
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.typed import shown
from lora_tools.formats.rotary import Heads, heads_of

LLAMAS = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""Types of models with ``self_attn.q_proj`` and a gated ``mlp``, no layers fused."""


def llama_heads(base: Mapping[str, Any] | None, tool: str) -> Heads:
    """Return the head counts of a base model of Llama's family.

    Raises `UnsupportedError` where the base is missing, or of a family whose names in the files of
    ``tool`` are not known, and `FormatError` where it does not say its heads.
    """
    if not base:
        raise UnsupportedError(
            f"{tool}'s names and fused layers depend on the base model, which the file does not say"
        ).hint("Give it: --base MODEL, with its config.json.")
    kind = base.get("model_type")
    if kind not in LLAMAS:
        called = kind if isinstance(kind, str) else shown(kind)
        raise UnsupportedError(
            f"the base model is of type {called}, of which it is not known what"
            f" {tool} calls its layers"
        ).hint(f"Known types: {', '.join(LLAMAS)}.")
    heads = heads_of(base)
    if heads is None:
        raise FormatError("the base model's config.json does not say how many heads it has")
    return heads
