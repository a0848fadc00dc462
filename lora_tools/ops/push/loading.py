"""How to load what is published, for each consumer that can."""

from collections.abc import Iterator

from lora_tools.adapter import Adapter
from lora_tools.model import Model

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's ``--max-lora-rank``."""

PICTURES = ("kohya", "diffusers", "comfyui")
"""Formats that diffusers loads."""


def loading(subject: Adapter | Model, repo: str, base: str | None) -> Iterator[str]:
    """Yield Markdown with the code that loads it."""
    if isinstance(subject, Model):
        yield from _model(subject, repo)
    elif subject.manifest.format in PICTURES:
        yield from _code(
            "python",
            "from diffusers import DiffusionPipeline",
            "",
            f'pipe = DiffusionPipeline.from_pretrained("{base or "BASE"}")',
            f'pipe.load_lora_weights("{repo}", weight_name="{subject.tensors.path.name}")',
        )
    elif subject.manifest.format == "peft":
        yield from _peft(subject, repo, base)
        if (rank := _served(subject)) and _writes(subject):
            name = repo.partition("/")[2]
            yield "With vLLM:"
            yield ""
            yield from _code(
                "sh",
                f"vllm serve {base or 'BASE'} --enable-lora --max-lora-rank {rank}"
                f" --lora-modules {name}={repo}",
            )


def _model(model: Model, repo: str) -> Iterator[str]:
    writes = (model.architecture or "").endswith("ForCausalLM")
    loader = "AutoModelForCausalLM" if writes else "AutoModel"
    yield from _code(
        "python",
        f"from transformers import {loader}",
        "",
        f'model = {loader}.from_pretrained("{repo}", dtype="auto")',
    )


def _peft(adapter: Adapter, repo: str, base: str | None) -> Iterator[str]:
    if _writes(adapter):
        yield from _code(
            "python",
            "from peft import AutoPeftModelForCausalLM",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")',
        )
        return
    yield from _code(
        "python",
        "from peft import PeftModel",
        "from transformers import AutoModel",
        "",
        f'base = AutoModel.from_pretrained("{base or "BASE"}")',
        f'model = PeftModel.from_pretrained(base, "{repo}")',
    )


def _served(adapter: Adapter) -> int | None:
    """Return the smallest ``--max-lora-rank`` that vLLM serves it at; None if it would not."""
    modules = adapter.manifest.modules
    plain = all(module.parts.keys() == {"a", "b"} for module in modules)
    if adapter.manifest.extras or not plain or len({module.scale for module in modules}) != 1:
        return None  # refused, or at one scale for all
    largest = max(module.r for module in modules)
    return next((rank for rank in RANKS if rank >= largest), None)


def _writes(adapter: Adapter) -> bool:
    return adapter.config.get("task_type") == "CAUSAL_LM"


def _code(language: str, *lines: str) -> Iterator[str]:
    yield from (f"```{language}", *lines, "```", "")
