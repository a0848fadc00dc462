"""Inspections as data, of adapters that never were: for whatever shows an inspection."""

import hashlib
import math
import random
from collections.abc import Iterable
from typing import Any

from lora_tools.names import collapse, template

Document = dict[str, Any]

COMPARED = ("prefixes", "unmatched", "misshapen")
"""What is null without a base."""

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BLOCK = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>{{7*7}}'\"&lt;"


def language(layers: int = 32, projections: Iterable[str] = (*ATTENTION, *MLP)) -> list[str]:
    """Return the names of a language model's modules."""
    return [f"model.layers.{n}.{name}" for n in range(layers) for name in projections]


def diffusion() -> list[str]:
    """Return the 1,000 names of a diffusion model's modules, in a file's order."""
    names = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    names += ["add_embedding.linear_1", "add_embedding.linear_2"]
    sizes = {"down_blocks.1": (2, 2), "down_blocks.2": (2, 10), "mid_block": (1, 10)}
    sizes |= {"up_blocks.0": (3, 10), "up_blocks.1": (3, 2)}
    for block, (attentions, depth) in sizes.items():
        for n in range(attentions):
            path = f"{block}.attentions.{n}"
            names += [f"{path}.proj_in", f"{path}.proj_out"]
            for at in range(depth):
                names += [f"{path}.transformer_blocks.{at}.{name}" for name in (*BLOCK, *CROSS)]
    for block in (*sizes, "down_blocks.0", "up_blocks.2"):
        for n in range(3):
            names += [f"{block}.resnets.{n}.{c}" for c in ("conv1", "conv2", "time_emb_proj")]
        if block.startswith("down"):
            names.append(f"{block}.downsamplers.0.conv")
    names += ["odd name with spaces", "ünïcode.模块.0.weight", "x" * 120, "a.b.c.d"]
    encoder = (f"text_model.encoder.layers.{n}.{name}" for n in range(99) for name in ATTENTION)
    names += list(encoder)[: 1000 - len(names)]
    return sorted(names)


def document(
    names: Iterable[str],
    *,
    rank: int = 16,
    spectrum: bool = True,
    base: bool = False,
    odd: bool = False,
) -> Document:
    """Return an inspection; odd ones have modules that are zero, not finite or twice there."""
    modules = [_module(name, rank, spectrum, base) for name in names]
    if spectrum and odd:
        _spoil(modules)
    params, nbytes = (sum(module[key] for module in modules) for key in ("params", "bytes"))
    norms = [module["spectrum"]["norm"] or 0.0 for module in modules] if spectrum else []
    return {
        "schema": "lora-tools/inspect/2",
        "source": "adapters/my-adapter",
        "format": "peft",
        "base_model": "org/base-model-7b",
        "task": "CAUSAL_LM",
        "scale_model": "alpha / r",
        "trained_by": [["peft", "0.21.2"], ["ss_network_module", "networks.lora"]],
        "totals": {
            "modules": len(modules),
            "params": params,
            "bytes": nbytes,
            "dtypes": {"F16": len(modules)},
            "norm": math.hypot(*norms) if spectrum else None,
            "base_params": 7_241_732_096 if base else None,
            "base_bytes": 14_483_464_192 if base else None,
        },
        "groups": _groups(modules),
        "modules": modules,
        "tensors": [],
        "problems": [],
        "notes": [],
        "ranks": _ranks(rank, nbytes) if spectrum else None,
        "suggestion": _suggestion(rank, nbytes) if spectrum else None,
        "base": "models/base-model-7b" if base else None,
        **({"prefixes": [], "unmatched": [], "misshapen": []} if base else dict.fromkeys(COMPARED)),
        "verdicts": [],
    }


def full(names: Iterable[str], **options: Any) -> Document:
    """Return an inspection that has something to say in every part."""
    found = document(names, base=True, odd=True, **options)
    some = [module["module"] for module in found["modules"][:5]]
    found["tensors"] = [
        {"tensor": f"model.{kind}.weight", "kind": kind, "dtype": "F32", "shape": [32000, 4096]}
        | {"bytes": 524_288_000}
        for kind in ("modules_to_save", "bias", "not understood")
    ]
    found["problems"] = ["adapter_config.json says r 8, but the tensors of 12 modules have rank 16"]
    found["notes"] = ["DoRA: norms are those of the low-rank direction."]
    found["unmatched"] = some[:2]
    found["misshapen"] = [
        {"module": some[0], "shape": [4, 8], "base_tensor": f"{some[0]}.weight"}
        | {"base_shape": [8, 8]}
    ]
    finding = {
        "rule": "one-scale",
        "verdict": "loads at the wrong strength",
        "reason": "It uses alpha / r = 2 for all modules, but 12 modules have a scale of 4.",
        "where": some,
        "count": 12,
        "fix": "lora-tools shrink adapters/my-adapter OUT --rank 16 --for vllm",
    }
    refusal = {"rule": "no-dora", "verdict": "refused", "reason": "DoRA is not supported."}
    refusal |= {"where": [], "count": 0, "fix": None}
    stated: list[tuple[str, str, list[Document]]] = [
        ("peft", "loads", []),
        ("vllm", "loads at the wrong strength", [finding]),
        ("llama.cpp", "refused", [refusal]),
        ("mlx", "loads but has no effect", [finding | {"verdict": "loads but has no effect"}]),
    ]
    found["verdicts"] = [
        {"runtime": runtime, "version": "1.2.3", "verdict": verdict, "findings": findings}
        for runtime, verdict, findings in stated
    ]
    return found


def _module(name: str, rank: int, spectrum: bool, base: bool) -> Document:
    kind = "convolution" if "conv" in name else "linear"
    shape = [320, 320, 3, 3] if kind == "convolution" else [4096, 11008 if "mlp" in name else 4096]
    params = rank * (shape[0] + math.prod(shape[1:]))
    module: Document = {"module": name, "kind": kind, "shape": shape, "rank": rank}
    module |= {"alpha": 2.0 * rank, "scale": 2.0, "dtype": "F16", "params": params}
    module |= {"bytes": 2 * params, "parts": ["a", "b"], "spectrum": None}
    module |= dict.fromkeys(("base_tensor", "base_norm", "relative_norm"))
    if spectrum:
        module["spectrum"] = _spectrum(_sigma(name, rank))
    if base:
        norm = module["spectrum"]["norm"] if spectrum else None
        module |= {"base_tensor": f"{name}.weight", "base_norm": 80.0}
        module["relative_norm"] = norm / 80 if norm else None
    return module


def _sigma(name: str, rank: int) -> list[float]:
    """Return singular values that depend on the name alone: smooth in the layer, with noise."""
    projection, layer = template(name), _layer(name)
    kind = random.Random(hashlib.blake2b(projection.encode("utf-8", "surrogatepass")).digest())
    noise = random.Random(hashlib.blake2b(name.encode("utf-8", "surrogatepass")).digest())
    size, decay = kind.uniform(0.2, 1.2), kind.uniform(0.05, 0.5)
    size *= (0.6 + math.sin(layer / 7 + kind.random()) ** 2) * noise.uniform(0.85, 1.15)
    return [size * math.exp(-decay * n) * noise.uniform(0.95, 1) + 0.002 for n in range(rank)]


def _layer(name: str) -> int:
    return sum(int(part) for part in name.split(".") if part.isascii() and part.isdecimal())


def _spectrum(sigma: list[float]) -> Document:
    sigma = sorted(sigma, reverse=True)
    squares = [s * s for s in sigma]
    whole = math.fsum(squares)
    shares = [square / whole for square in squares]
    ranks = {}
    for share in (0.9, 0.95, 0.99, 0.999):
        kept = (k for k in range(1, len(sigma) + 1) if math.fsum(shares[:k]) >= share - 1e-12)
        ranks[str(share)] = next(kept, len(sigma))
    return {
        "state": "finite",
        "norm": math.sqrt(whole),
        "sigma_max": sigma[0],
        "stable_rank": whole / squares[0],
        "effective_rank": math.exp(-math.fsum(p * math.log(p) for p in shares if p)),
        "energy_ranks": ranks,
        "sigma": sigma,
        "duplicate_of": None,
    }


def _spoil(modules: list[Document]) -> None:
    empty = dict.fromkeys(("sigma_max", "stable_rank", "effective_rank", "energy_ranks", "sigma"))
    last = len(modules) - 1
    modules[last]["spectrum"]["duplicate_of"] = modules[0]["module"] if last else None
    if last > 2:
        modules[last // 2]["spectrum"] |= {**empty, "state": "zero", "norm": 0.0, "sigma_max": 0.0}
        modules[last // 3]["spectrum"] |= {**empty, "state": "not finite", "norm": None}
        modules[last // 4]["parts"] = ["a", "b", "magnitude"]


def _groups(modules: list[Document]) -> list[Document]:
    found: dict[tuple[str, str], list[Document]] = {}
    for module in modules:
        found.setdefault((template(module["module"]), str(module["shape"])), []).append(module)
    keys = ("kind", "shape", "rank", "alpha", "scale", "dtype")
    return [
        {"pattern": collapse([module["module"] for module in members]), "count": len(members)}
        | {key: members[0][key] for key in keys}
        | {"params": sum(module["params"] for module in members)}
        for members in found.values()
    ]


def _ranks(rank: int, nbytes: int) -> list[Document]:
    steps = sorted({1, 2, 4, 8, 16, 32, 64, rank} & set(range(1, rank + 1)))
    rows: list[Document] = []
    for k in steps:
        error = math.exp(-0.3 * k) if k < rank else 0.0
        row = {"rank_after": k, "bytes_after": nbytes * k // rank, "optimal_error": error}
        rows.append(row | {"allocated_error": 0.85 * error})
    return rows


def _suggestion(rank: int, nbytes: int) -> Document | None:
    if rank < 4:
        return None
    half = rank // 2
    return {
        "rank_after": half,
        "energy": 0.991,
        "optimal_error": 0.094,
        "bytes_before": nbytes,
        "bytes_after": nbytes // 2,
        "arguments": f"lora-tools shrink adapters/my-adapter OUT --rank {half}",
        "text": f"rank {half} keeps 99.1 % of this adapter",
    }
