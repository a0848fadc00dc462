"""Runtimes that load adapters, and what they make of one."""

from collections.abc import Iterable
from dataclasses import replace

from lora_tools.errors import PolicyError, suggestion
from lora_tools.runtimes.base import (
    Breach,
    Finding,
    Judgement,
    Rule,
    Runtime,
    Subject,
    Verdict,
    judge,
    order,
)
from lora_tools.runtimes.comfyui import COMFYUI
from lora_tools.runtimes.diffusers import DIFFUSERS
from lora_tools.runtimes.llamacpp import LLAMACPP
from lora_tools.runtimes.mlx import MLX
from lora_tools.runtimes.peft import PEFT
from lora_tools.runtimes.sglang import SGLANG
from lora_tools.runtimes.subject import subject
from lora_tools.runtimes.text import to_markdown, to_text
from lora_tools.runtimes.vllm import MAX_RANK, VLLM
from lora_tools.runtimes.vllm import runtime as vllm

__all__ = [
    "NAMES",
    "RUNTIMES",
    "VLLM",
    "Breach",
    "Finding",
    "Judgement",
    "Rule",
    "Runtime",
    "Subject",
    "Verdict",
    "judge",
    "named",
    "subject",
    "to_markdown",
    "to_text",
    "vllm",
]

RUNTIMES = (PEFT, VLLM, SGLANG, LLAMACPP, DIFFUSERS, COMFYUI, MLX)
NAMES = (*(runtime.name for runtime in RUNTIMES), "all")


def named(names: Iterable[str], *, max_lora_rank: int = MAX_RANK) -> tuple[Runtime, ...]:
    """Return the runtimes of these names, in the table's order; ``all`` is every one.

    A name may end with the version to judge for, as in ``vllm@0.31``. Raises `PolicyError` for
    names and versions that are none.
    """
    asked: dict[str, str] = {}
    for name in names:
        runtime, at, version = name.partition("@")
        if runtime not in NAMES or (at and (runtime == "all" or not order(version))):
            raise PolicyError(f"{name!r} is no runtime").hint(
                f"{suggestion(name, NAMES)}Known are {', '.join(NAMES)}."
            )
        asked[runtime] = version
    known = (vllm(max_lora_rank) if c.name == VLLM.name else c for c in RUNTIMES)
    return tuple(
        replace(runtime, version=asked.get(runtime.name) or runtime.version)
        for runtime in known
        if runtime.name in asked or "all" in asked
    )
