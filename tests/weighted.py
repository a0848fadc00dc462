"""What the real peft makes of several adapters at once."""

import warnings
from pathlib import Path

import torch
from reference import deltas, load
from torch import Tensor, nn

PREFIX = "base_model.model."


def base(folder: Path) -> nn.Module:
    """Build a model of the linear layers that an adapter is of, and of nothing else."""
    tensors, _ = load(folder)
    model = nn.Module()
    model.config = {}
    for stem in deltas(folder):
        *parents, leaf = stem.removeprefix(PREFIX).split(".")
        place = model
        for name in parents:
            if not hasattr(place, name):
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        inp, out = tensors[f"{stem}.lora_A.weight"].shape[1], len(tensors[f"{stem}.lora_B.weight"])
        place.add_module(leaf, nn.Linear(inp, out, bias=False, dtype=torch.float32))
    return model


def weighted(
    folders: list[Path], weights: tuple[float, ...], kind: str, **more
) -> dict[str, Tensor]:
    """Return the update of each module that ``add_weighted_adapter`` makes of adapters."""
    from peft import PeftModel

    names = [str(number) for number in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base(folders[0]), str(folders[0]), adapter_name="0")
        for name, folder in list(zip(names, folders, strict=True))[1:]:
            model.load_adapter(str(folder), adapter_name=name)
        model.add_weighted_adapter(names, list(weights), "sum", combination_type=kind, **more)
    layers = {stem: model.get_submodule(stem) for stem in deltas(folders[0])}
    return {name: layer.get_delta_weight("sum").detach().double() for name, layer in layers.items()}
