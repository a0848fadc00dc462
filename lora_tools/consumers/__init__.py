"""Engines that load adapters, and what they make of one."""

from collections.abc import Iterable
from dataclasses import replace

from lora_tools.consumers.base import (
    Breach,
    Consumer,
    Finding,
    Judgement,
    Rule,
    Subject,
    Verdict,
    judge,
    order,
)
from lora_tools.consumers.comfyui import COMFYUI
from lora_tools.consumers.diffusers import DIFFUSERS
from lora_tools.consumers.llamacpp import LLAMACPP
from lora_tools.consumers.mlx import MLX
from lora_tools.consumers.peft import PEFT
from lora_tools.consumers.sglang import SGLANG
from lora_tools.consumers.subject import subject
from lora_tools.consumers.text import to_markdown, to_text
from lora_tools.consumers.vllm import MAX_RANK, VLLM
from lora_tools.consumers.vllm import consumer as vllm
from lora_tools.errors import PolicyError

__all__ = [
    "CONSUMERS",
    "NAMES",
    "VLLM",
    "Breach",
    "Consumer",
    "Finding",
    "Judgement",
    "Rule",
    "Subject",
    "Verdict",
    "judge",
    "named",
    "subject",
    "to_markdown",
    "to_text",
    "vllm",
]

CONSUMERS = (PEFT, VLLM, SGLANG, LLAMACPP, DIFFUSERS, COMFYUI, MLX)
NAMES = (*(consumer.name for consumer in CONSUMERS), "all")


def named(names: Iterable[str], *, max_lora_rank: int = MAX_RANK) -> tuple[Consumer, ...]:
    """Return the engines of these names, in the table's order; ``all`` is every one.

    A name may end with the version to judge for, as in ``vllm@0.31``. Raises `PolicyError` for
    names and versions that are none.
    """
    asked: dict[str, str] = {}
    for name in names:
        engine, at, version = name.partition("@")
        if engine not in NAMES or (at and (engine == "all" or not order(version))):
            raise PolicyError(f"{name!r} is no engine").hint(f"Known are {', '.join(NAMES)}.")
        asked[engine] = version
    known = (vllm(max_lora_rank) if c.name == VLLM.name else c for c in CONSUMERS)
    return tuple(
        replace(consumer, version=asked.get(consumer.name) or consumer.version)
        for consumer in known
        if consumer.name in asked or "all" in asked
    )
