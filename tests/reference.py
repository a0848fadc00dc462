"""An independent judge: dense float64 updates, made from files without any of our own code."""

import json
import re
from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def load(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Read tensors and configuration with the standard libraries."""
    config = json.loads((folder / "adapter_config.json").read_text())
    file = folder / "adapter_model.safetensors"
    if file.exists():
        return load_file(file), config
    return torch.load(folder / "adapter_model.bin", weights_only=True), config


def deltas(folder: Path) -> dict[str, Tensor]:
    """Return each module's dense update in float64, as a matrix or a stack of matrices.

    Modules are named by the stem of their keys. Written from the definitions alone: scale times
    B times A, conv kernels flattened, groups and experts one matrix each.
    """
    tensors, config = load(folder)
    found = {}
    for key in tensors:
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?A(\.weight)?", key)
        if match:
            stem = match[1]
            middle = match[2] or ""
            b = tensors[f"{stem}.lora_{middle}B{match[3] or ''}"].double()
            a = tensors[key].double()
            found[stem] = _dense(stem, b, a, config)
    return found


def _dense(stem: str, b: Tensor, a: Tensor, config: dict) -> Tensor:
    path = stem.removeprefix("base_model.model.")
    # A multi-head attention hands its rank and alpha down to its output projection.
    path = re.sub(r"\.base_layer\..*", "", path).replace(".base_layer", "")
    experts = config.get("target_parameters") and path.endswith("experts")
    if experts:  # the first parameter of the module is wrapped innermost
        path += ".gate_up_proj" if stem.endswith(".base_layer") else ".down_proj"
    r = _pattern(config, "rank_pattern", path, config["r"])
    alpha = _pattern(config, "alpha_pattern", path, config["lora_alpha"])
    scale = alpha / (sqrt(r) if config.get("use_rslora") else r)
    if experts:
        count = a.shape[0] // r
        each = [b[:, e::count] @ a[e * r : (e + 1) * r] for e in range(count)]
        return scale * torch.stack(each)
    b, a = b.flatten(1), a.flatten(1)
    groups = a.shape[0] // b.shape[1]
    if groups > 1:
        pairs = zip(b.chunk(groups), a.chunk(groups), strict=True)
        return scale * torch.stack([x @ y for x, y in pairs])
    return scale * (b @ a)


def _pattern(config: dict, name: str, path: str, default: float) -> float:
    for key, value in (config.get(name) or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def relative_error(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return the relative Frobenius distance of two adapters."""
    assert before.keys() == after.keys()
    lost = sum(float((before[name] - after[name]).square().sum()) for name in before)
    return sqrt(lost / sum(float(delta.square().sum()) for delta in before.values()))


def tail(delta: Tensor, rank: int) -> float:
    """Return the squared norm of what a full SVD of each matrix leaves beyond ``rank`` values."""
    return float(torch.linalg.svdvals(delta)[..., rank:].square().sum())
