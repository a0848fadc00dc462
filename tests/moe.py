"""Mixtures of experts by hand: bases of every layout, and what each PEFT saves for them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

E, R, D = 3, 2, 8
ALPHA = 5
VERSIONS = ("0.18.1", "0.19.0", "0.19.1", "0.21.2")
LAYER = "model.layers.0"
STACKED = f"{LAYER}.mlp.experts"
PER_EXPERT = {
    "mixtral": (f"{LAYER}.block_sparse_moe.experts", ("w1", "w3"), "w2"),
    "qwen3_moe": (STACKED, ("gate_proj", "up_proj"), "down_proj"),
}
LAYOUTS = ("stacked", "gpt_oss", *PER_EXPERT)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:3]))


def reads_first(version: str, *, stored_transposed: bool) -> bool:
    """Whether A of that version reads dimension 1 of a stack: `ParamWrapper` of each."""
    if numbers(version) < (0, 19):
        return True
    return stored_transposed != (numbers(version) < (0, 19, 1))


def wrapped(version: str, shape: tuple[int, ...], *, stored_transposed: bool) -> tuple[Tensor, ...]:
    """Return A and B of a stack as that version saves them, and what it adds, in float64."""
    first = reads_first(version, stored_transposed=stored_transposed)
    inp, out = shape[1:] if first else (shape[2], shape[1])
    a, b = torch.randn(E * R, inp), torch.randn(out, R * E)
    terms = b.double().reshape(out, R, E), a.double().reshape(E, R, inp)
    added = torch.einsum("ore,eri->eio" if first else "ore,eri->eoi", *terms)
    return a, b, ALPHA / R * added


def saved(folder: Path, version: str, shapes: dict[str, tuple[int, ...]], **config):
    """Save an adapter of stacks as that version would; return what it adds to each."""
    stored_transposed = config.pop("stored_transposed", False)
    tensors, added = {}, {}
    for name, end in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        a, b, added[name] = wrapped(version, shapes[name], stored_transposed=stored_transposed)
        key = f"base_model.model.{STACKED}{end}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "target_modules": []}
    # The bare names are those that PEFT itself writes for ``all-linear``.
    known |= {"target_parameters": ["gate_up_proj", "down_proj"], "peft_version": version}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return added


def laid_out(layout: str, size: int) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], str]:
    """Return a base of that layout, the shapes of its stacks in memory, and its model's type."""
    gate_up, down = torch.randn(E, 2 * size, D).double(), torch.randn(E, D, size).double()
    if layout == "gpt_oss":
        gate_up, down = gate_up.mT.contiguous(), down.mT.contiguous()
    shapes = {"gate_up_proj": tuple(gate_up.shape), "down_proj": tuple(down.shape)}
    if layout not in PER_EXPERT:
        kind = "qwen3_moe" if layout == "stacked" else layout
        return (
            {f"{STACKED}.gate_up_proj": gate_up, f"{STACKED}.down_proj": down},
            shapes,
            kind,
        )
    experts, gates, last = PER_EXPERT[layout]
    state = {}
    for expert in range(E):
        for leaf, half in zip(gates, gate_up[expert].chunk(2), strict=True):
            state[f"{experts}.{expert}.{leaf}.weight"] = half.clone()
        state[f"{experts}.{expert}.{last}.weight"] = down[expert].clone()
    return state, shapes, layout


def stacks_of(layout: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's stacks as they are in memory."""
    if layout not in PER_EXPERT:
        return {name.rpartition(".")[2]: weight for name, weight in state.items()}
    experts, gates, last = PER_EXPERT[layout]
    weights = [[state[f"{experts}.{e}.{leaf}.weight"] for leaf in (*gates, last)] for e in range(E)]
    return {
        "gate_up_proj": torch.stack([torch.cat(each[:2]) for each in weights]),
        "down_proj": torch.stack([each[2] for each in weights]),
    }
