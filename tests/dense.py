"""An independent judge of merges: whole models in float64, made without any of our own code."""

import json
import re
from pathlib import Path

import reference
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "base_model.model."


def merged(folder: Path, state: dict[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
    """Return the state of a model with an adapter merged into it, in float64, grouped conv aside.

    ``state`` has the names that the adapter was trained with.
    """
    tensors, config = reference.load(folder)
    result = {key: tensor.double() for key, tensor in state.items()}
    for key, tensor in tensors.items():
        path = key.removeprefix(PREFIX).replace(".base_layer", "")
        if path in result and "lora_" not in key:  # modules_to_save, biases, saved embeddings
            result[path] = tensor.double()
        if path.endswith("token_adapter.trainable_tokens_delta"):
            name = path.removesuffix("token_adapter.trainable_tokens_delta") + "weight"
            rows = config["trainable_token_indices"]
            result[name] = result[name].clone()
            result[name][rows] = tensor.double()
    for stem, delta in reference.deltas(folder).items():
        name, update = _home(stem, weight * delta, result, config)
        if update.shape != result[name].shape:
            continue  # a grouped convolution
        total = result[name] + update
        magnitude = tensors.get(f"{stem}.lora_magnitude_vector")
        if magnitude is not None:
            flip = config.get("fan_in_fan_out") or "embedding" in stem
            rows = (total.T if flip else total).flatten(1)
            rows = rows * (magnitude.double().flatten() / rows.norm(dim=1))[:, None]
            total = rows.T if flip else rows.reshape(total.shape)
        result[name] = total
        bias = tensors.get(f"{stem}.lora_B.bias")
        if bias is not None:
            key = name.removesuffix("weight") + "bias"
            r, alpha = config["r"], config["lora_alpha"]
            result[key] = result[key] + weight * alpha / r * bias.double()
    return result


def _home(stem: str, delta: Tensor, state: dict[str, Tensor], config: dict) -> tuple[str, Tensor]:
    path = stem.removeprefix(PREFIX).replace(".base_layer", "")
    if config.get("target_parameters") and path.endswith("experts"):
        name = f"{path}." + ("gate_up_proj" if stem.endswith(".base_layer") else "down_proj")
        return name, delta
    if f"{path}.in_proj_weight" in state:
        return f"{path}.in_proj_weight", delta
    name = f"{path}.weight"
    if "word_embeddings" in path or config.get("fan_in_fan_out"):
        return name, delta.T
    shape = state[name].shape
    return name, delta.reshape(shape) if delta.numel() == state[name].numel() else delta


def rounded(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 once, to nearest, ties to even: by scaling each number to whole steps."""
    if dtype in (torch.float64, torch.float32):
        return wide.to(dtype)
    digits, least = {torch.bfloat16: (8, -126), torch.float16: (11, -14)}[dtype]
    _, exponent = torch.frexp(wide)
    power = (exponent - 1).clamp(min=least) - digits + 1
    step = torch.ldexp(torch.ones_like(wide), power)
    return (torch.round(wide / step) * step).to(dtype)  # torch.round takes ties to even


def save_base(folder: Path, state: dict[str, Tensor], dtype: torch.dtype, **config: object) -> Path:
    """Save a state as a model folder of two shards, the floating tensors in ``dtype``."""
    folder.mkdir(parents=True)
    typed = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
    typed = {k: t.clone().contiguous() for k, t in typed.items()}
    names = sorted(typed)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    index: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({k: typed[k] for k in half}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(half, file)
    size = sum(t.nbytes for t in typed.values())
    document = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    (folder / "config.json").write_text(json.dumps({"model_type": "test", **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def load_model(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model folder."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights without the copies that tied ones have."""
    seen: dict[int, str] = {}
    state = {}
    for key, tensor in model.state_dict().items():
        if not re.search("position_ids", key) and tensor.data_ptr() not in seen:
            seen[tensor.data_ptr()] = key
            state[key] = tensor.detach()
    return state
