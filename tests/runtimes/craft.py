"""Adapters made wrong on purpose: a fixture, changed in one respect."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from click.testing import CliRunner
from conftest import FIXTURES
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_tools.cli import cli

Tensors = dict[str, Tensor]


def craft(
    folder: Path,
    fixture: str = "minilm-plain",
    *,
    change: Callable[[Tensors], Tensors] = dict,
    file: str = "adapter_model.safetensors",
    metadata: Mapping[str, str] | None = None,
    **config: object,
) -> Path:
    """Write a fixture into ``folder`` with other tensors and other fields; `...` takes one out."""
    folder.mkdir(parents=True)
    source = FIXTURES / fixture
    tensors = change(load_file(source / "adapter_model.safetensors"))
    save_file(
        {k: t.contiguous() for k, t in tensors.items()},
        folder / file,
        {"format": "pt", **(metadata or {})},
    )
    fields = json.loads((source / "adapter_config.json").read_text()) | config
    kept = {key: value for key, value in fields.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    return folder


def file_of(folder: Path, name: str, tensors: Tensors, **metadata: str) -> Path:
    """Write tensors and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, {"format": "pt", **metadata})
    return folder / name


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def without(mark: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if mark not in key}


def pair(
    key_prefix: str,
    rank: int = 4,
    out: int = 8,
    inp: int = 6,
    up="lora_B.weight",
    down="lora_A.weight",
):
    torch.manual_seed(len(key_prefix))
    return {
        f"{key_prefix}.{down}": torch.randn(rank, inp),
        f"{key_prefix}.{up}": torch.randn(out, rank),
    }


def fixed(command: str | None, folder: Path) -> Path:
    """Run the command that a finding names and return what it wrote."""
    assert command is not None
    program, *arguments = shlex.split(command)
    assert program == "lora-tools"
    out = folder / "fixed"
    words = [str(out) if word == "OUT" else word for word in arguments]
    result = CliRunner().invoke(cli, [*words, "--quiet"])
    assert result.exit_code == 0, result.output
    return out
