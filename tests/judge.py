"""The outside judge: the real peft loads a folder and says what its updates are."""

import json
import warnings
from math import sqrt
from pathlib import Path

import torch
from bases import BASES
from torch import Tensor, nn


def base_of(folder: Path) -> nn.Module:
    """Build the base model that an adapter belongs to; random weights do for additive updates."""
    if folder.name in BASES:
        return BASES[folder.name]()
    from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoXConfig

    small = {"vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
    match folder.name:
        case "peft-gptneo125m-movies":
            kinds = [[["global", "local"], 6]]
            config = GPTNeoConfig(hidden_size=768, num_layers=12, attention_types=kinds, **small)
        case "peft-opencalm1b-r1-fusedqkv":
            config = GPTNeoXConfig(
                hidden_size=2048, num_hidden_layers=24, intermediate_size=64, **small
            )
    # Unfilled memory: what is added to a weight does not depend on it.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.to_empty(device="cpu")


def load(base: nn.Module, folder: Path) -> nn.Module:
    """Load an adapter onto ``base`` as peft does, and insist that every key found its place."""
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        model = get_peft_model(base, config)
        weights = load_peft_weights(str(folder), device="cpu")
        result = set_peft_model_state_dict(model, weights)
    marks = ("lora_", "modules_to_save", "trainable_tokens_delta")
    missing = [key for key in result.missing_keys if any(mark in key for mark in marks)]
    assert not missing
    assert not result.unexpected_keys
    return model.eval()


def deltas(model: nn.Module) -> dict[str, Tensor]:
    """Return what peft adds to each weight (and bias), in float32, by module path."""
    found = {}
    for name, layer in model.named_modules():
        factors = getattr(layer, "lora_A", None)
        if factors is None or "default" not in (*factors, *layer.lora_embedding_A):
            continue
        groups = getattr(layer.get_base_layer(), "groups", 1)
        if groups > 1:  # peft's own get_delta_weight raises for these
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            blocks = torch.block_diag(*b.flatten(1).chunk(groups))
            found[name] = layer.scaling["default"] * blocks @ a.flatten(1)
        else:
            found[name] = layer.get_delta_weight("default")
        if layer.lora_bias.get("default"):
            found[f"{name}.bias"] = layer.scaling["default"] * layer.lora_B["default"].bias
    assert found
    return {name: delta.detach() for name, delta in found.items()}


def relative(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return the relative Frobenius distance over everything, biases counted as lost only."""
    assert before.keys() == after.keys()
    whole = [float(d.norm()) ** 2 for name, d in before.items() if not name.endswith("bias")]
    lost = [float((before[name] - after[name]).norm()) ** 2 for name in before]
    return sqrt(sum(lost) / sum(whole))


def totals(folder: Path) -> dict[str, float]:
    """Return the totals that a folder's own report claims."""
    return json.loads((folder / "lora_tools_report.json").read_text())["totals"]
