"""How to load what is published, for each runtime that can."""

import shlex
from collections.abc import Iterator

from lora_tools.adapter import Adapter
from lora_tools.model import Model
from lora_tools.report import block
from lora_tools.runtimes import RUNTIMES, Runtime, judge, subject, vllm
from lora_tools.text import json_text


def loading(of: Adapter | Model, repo: str, base: str | None) -> Iterator[str]:
    """Yield Markdown with the code that loads it, of the runtimes that load it at its strength."""
    if isinstance(of, Model):
        yield from _model(of, repo)
        return
    runtimes = {runtime.name: runtime for runtime in RUNTIMES}
    if _loads(of, runtimes["peft"]):
        yield from _peft(of, repo, base)
        if _writes(of) and (rank := _rank(of, runtimes["vllm"])):
            name = repo.partition("/")[2]
            yield "With vLLM:"
            yield ""
            yield from _code(
                "sh",
                f"vllm serve {shlex.quote(base or 'BASE')} --enable-lora --max-lora-rank {rank}"
                f" --lora-modules {name}={repo}",
            )
    elif _loads(of, runtimes["diffusers"]):
        yield from _code(
            "python",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipe = DiffusionPipeline.from_pretrained({_quoted(base or 'BASE')})",
            f'pipe.load_lora_weights("{repo}", weight_name={_quoted(of.tensors.path.name)})',
        )
    else:
        yield from ("`lora-tools inspect --for all` says which runtimes load it.", "")


def _loads(adapter: Adapter, runtime: Runtime) -> bool:
    return judge(subject(adapter), runtime).loads


def _rank(adapter: Adapter, runtime: Runtime) -> int | None:
    """Return the smallest ``--max-lora-rank`` with which vLLM serves it, older ones as well."""
    about = subject(adapter)
    return next((rank for rank in runtime.ranks if not judge(about, vllm(rank)).findings), None)


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
        f"base = AutoModel.from_pretrained({_quoted(base or 'BASE')})",
        f'model = PeftModel.from_pretrained(base, "{repo}")',
    )


def _writes(adapter: Adapter) -> bool:
    return adapter.config.get("task_type") == "CAUSAL_LM"


def _quoted(name: str) -> str:
    """Return a name as Python has it, whatever it holds."""
    return json_text(name)


def _code(language: str, *lines: str) -> Iterator[str]:
    yield from block(language, *lines)
