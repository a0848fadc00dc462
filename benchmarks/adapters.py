"""Synthetic PEFT adapters with the shapes of real models and spectra like those of trained ones."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Linear:
    """One kind of adapted module, named within its layer."""

    name: str
    inp: int
    out: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """The adapted modules of a decoder: ``layers`` times ``linears``."""

    base_model: str
    layers: int
    linears: tuple[Linear, ...]

    def __iter__(self) -> Iterator[tuple[str, Linear]]:
        """Yield each module's full name, as PEFT writes it, and its shape."""
        for layer in range(self.layers):
            for linear in self.linears:
                yield f"base_model.model.model.layers.{layer}.{linear.name}", linear


LLAMA2_7B = Architecture(
    base_model="meta-llama/Llama-2-7b-hf",
    layers=32,
    linears=(
        Linear("self_attn.q_proj", 4096, 4096),
        Linear("self_attn.k_proj", 4096, 4096),
        Linear("self_attn.v_proj", 4096, 4096),
        Linear("self_attn.o_proj", 4096, 4096),
        Linear("mlp.gate_proj", 4096, 11008),
        Linear("mlp.up_proj", 4096, 11008),
        Linear("mlp.down_proj", 11008, 4096),
    ),
)


def llama2_7b(path: Path, rank: int = 64, dtype: torch.dtype = torch.float16) -> Path:
    """Make a Llama-2-7B adapter of 224 modules at ``path``: 320 MB at rank 64 in float16."""
    return make(path, LLAMA2_7B, rank, dtype)


def make(path: Path, architecture: Architecture, rank: int, dtype: torch.dtype) -> Path:
    """Make the adapter folder ``path``, with ``lora_alpha = 2 * rank``, unless it exists.

    The bytes depend on the arguments alone, not on the order of the modules or on earlier calls.
    """
    if path.exists():
        return path
    tensors = {}
    for module, linear in architecture:
        a, b = factors(module, linear, rank)
        tensors[f"{module}.lora_A.weight"] = a.to(dtype)
        tensors[f"{module}.lora_B.weight"] = b.to(dtype)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    unfinished.mkdir(parents=True)
    save_file(tensors, unfinished / WEIGHTS, metadata={"format": "pt"})
    (unfinished / CONFIG).write_text(
        json.dumps(config(architecture, rank), indent=2, sort_keys=True) + "\n"
    )
    return unfinished.rename(path)


def factors(module: str, linear: Linear, rank: int) -> tuple[Tensor, Tensor]:
    """Return float32 ``a`` and ``b``; the singular values of ``b @ a`` are about ``0.5 * i**-p``.

    p lies between 0.6 and 1.4, drawn from the module's name. A rotation between the two
    factors keeps their rows and columns from already being the singular vectors.
    """
    seed = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=7).digest())
    generator = torch.Generator().manual_seed(seed)
    decay = 0.6 + 0.8 * torch.rand((), generator=generator).item()
    root = (0.5 * torch.arange(1, rank + 1) ** -decay).sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    # A tall Gaussian over the root of its height has nearly orthonormal columns.
    a = torch.randn(rank, linear.inp, generator=generator) / math.sqrt(linear.inp)
    b = torch.randn(linear.out, rank, generator=generator) / math.sqrt(linear.out)
    return rotation.T @ (root[:, None] * a), (b * root) @ rotation


def config(architecture: Architecture, rank: int) -> dict[str, object]:
    """Return what PEFT writes to ``adapter_config.json`` after training such an adapter."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": architecture.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": [linear.name.rpartition(".")[2] for linear in architecture.linears],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
