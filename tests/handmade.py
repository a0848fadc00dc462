"""An adapter's folder made by hand: two layers, and a tensor beside them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {
    "base_model_name_or_path": "some/base",
    "lora_alpha": 4,
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["q", "k"],
    "unbekannt": {"ключ": [1, None]},
}


def tensors() -> dict[str, Tensor]:
    return {
        f"base_model.model.h.{i}.{name}.lora_{part}.weight": torch.randn(shape)
        for i in range(2)
        for name in "qk"
        for part, shape in (("A", (2, 3)), ("B", (4, 2)))
    } | {"base_model.model.head.weight": torch.randn(5, 4)}


def make(folder: Path, config: object = CONFIG) -> Path:
    """Make an adapter folder by hand."""
    folder.mkdir(parents=True)
    save_file(tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
