"""How far an adapter is from the difference of two models, by the files alone.

Shares no code with lora_tools. python benchmarks/distances.py BASE TUNED ADAPTER...
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

PREFIX = "base_model.model."


def distance(base: Path, tuned: Path, adapter: Path) -> tuple[float, int]:
    """Return ‖ΔW - s·B·A‖ / ‖ΔW‖ over the modules of an adapter, in float64, and their number."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    ranks, alphas = (config.get(f"{name}_pattern") or {} for name in ("rank", "alpha"))
    lost = whole = 0.0
    count = 0
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        for key in sorted(file.keys()):
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            a, b = file.get_tensor(key), file.get_tensor(key.replace("lora_A", "lora_B"))
            scale = alphas.get(name, config["lora_alpha"]) / ranks.get(name, config["r"])
            before, after = (tensor(side, f"{name}.weight") for side in (base, tuned))
            for rows in torch.arange(len(before)).split(1024):
                change = after[rows].double() - before[rows].double()
                gap = change - scale * (b[rows].double() @ a.double())
                lost += float(gap.square().sum())
                whole += float(change.square().sum())
            count += 1
    return math.sqrt(lost / whole), count


def tensor(folder: Path, name: str) -> Tensor:
    """Read one tensor of a sharded checkpoint."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    with safe_open(folder / index["weight_map"][name], "pt") as file:
        return file.get_tensor(name)


if __name__ == "__main__":
    base, tuned, *adapters = map(Path, sys.argv[1:])
    for adapter in adapters:
        print(adapter, *distance(base, tuned, adapter))
