"""Who keeps the strength of an adapter: each tool's files, loaded by diffusers and by peft.

python benchmarks/scale_correctness.py

The truth is what peft computes from the adapter as it was trained. Every other number is the share
of it that arrives: 1 is right, 0.5 is half the strength. No time is measured.
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import diffusers
import peft
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from lora_tools.adapter import read, write
from lora_tools.formats.registry import format_named
from lora_tools.ops.convert import convert

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
RANKS = {f"{ATTENTION}.to_q": 4, f"{ATTENTION}.to_v": 4, "mid_block.resnets.0.conv1": 2}
ADAPTERS = {
    "alpha = rank": {"alphas": (4, 4, 2)},
    "one alpha": {"alphas": (8, 8, 8)},
    "rsLoRA": {"alphas": (8, 8, 8), "use_rslora": True},
    "alpha_pattern": {"alphas": (8, 2, 1)},
}

Deltas = dict[str, torch.Tensor]


def unet() -> diffusers.UNet2DConditionModel:
    """Return a UNet of a few layers."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )


def trained(folder: Path, alphas: tuple[float, ...], *, use_rslora: bool = False) -> Deltas:
    """Write an adapter as peft does and return its updates by their definition."""
    model, tensors, truth = unet(), {}, {}
    pattern = dict(zip(RANKS, alphas, strict=True))
    for path, rank in RANKS.items():
        weight = model.get_submodule(path).weight
        a = torch.randn(rank, *weight.shape[1:])
        b = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2))
        stem = f"base_model.model.{path}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        scale = pattern[path] / (sqrt(rank) if use_rslora else rank)
        truth[path] = scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": alphas[0], "use_rslora": use_rslora}
    config |= {"rank_pattern": RANKS, "alpha_pattern": pattern, "target_modules": list(RANKS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return truth


def by_lora_tools(target: str) -> Callable[[Path, Path], Path]:
    """Return a conversion by lora-tools: the file it writes."""

    def run(source: Path, out: Path) -> Path:
        plan = convert(read(source), format_named(target))
        out.mkdir()
        updates = plan.outcome().watch(plan)
        write(out, plan.manifest, updates, like=plan.source, format=plan.format)
        return next(out.glob("*.safetensors"))

    return run


def by_diffusers(source: Path, out: Path) -> Path:
    """Convert peft's tensors to kohya's with diffusers' own function, which takes no alpha."""
    tensors = load_file(source / "adapter_model.safetensors")
    named = {key.replace("base_model.model.", "unet."): value for key, value in tensors.items()}
    out.mkdir()
    save_file(convert_state_dict_to_kohya(named), out / "lora.safetensors")
    return out / "lora.safetensors"


def in_diffusers(file: Path) -> Deltas:
    """Return what diffusers adds to a UNet."""
    model = unet()
    loader = StableDiffusionLoraLoaderMixin
    state, alphas, metadata = loader.lora_state_dict(
        str(file.parent), weight_name=file.name, unet_config=model.config, return_lora_metadata=True
    )
    loader.load_lora_into_unet(state, alphas, model, adapter_name="default", metadata=metadata)
    return updates_of(model)


def in_peft(file: Path) -> Deltas:
    """Return what peft adds to a UNet."""
    return updates_of(peft.PeftModel.from_pretrained(unet(), str(file.parent)).base_model.model)


def updates_of(model: torch.nn.Module) -> Deltas:
    """Return the updates of the layers that peft has wrapped."""
    return {
        name: layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if getattr(layer, "lora_A", None)
    }


def share(seen: Deltas, truth: Deltas) -> str:
    """Return the share of the strength that arrives: the least and the most of any layer."""
    if seen.keys() != truth.keys():
        return "layers missing"
    shares = [float((seen[p] * truth[p]).sum() / truth[p].square().sum()) for p in truth]
    low, high = f"{min(shares):.3g}", f"{max(shares):.3g}"
    return low if low == high else f"{low}–{high}"


ROUTES = {
    "peft, as it is → peft": (lambda source, _: source / "adapter_model.safetensors", in_peft),
    "lora-tools → diffusers → diffusers": (by_lora_tools("diffusers"), in_diffusers),
    "lora-tools → kohya → diffusers": (by_lora_tools("kohya"), in_diffusers),
    "diffusers' converter → kohya → diffusers": (by_diffusers, in_diffusers),
}


def main() -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, how) in enumerate(ADAPTERS.items()):
            torch.manual_seed(number)
            place = Path(folder, str(number))
            truth = trained(place / "source", **how)
            cells = []
            for index, (make, load) in enumerate(ROUTES.values()):
                try:
                    cells.append(share(load(make(place / "source", place / f"to{index}")), truth))
                except Exception as error:  # noqa: BLE001 - a tool that fails is a result
                    cells.append(type(error).__name__)
            rows.append((name, *cells))
        # Back again: what was written in kohya's spelling, read and written for peft.
        for number in range(len(ADAPTERS)):
            place = Path(folder, str(number))
            again = by_lora_tools("peft")(place / "to2", place / "again")
            rows[number] += (share(in_peft(again), in_peft(place / "source" / "x")),)
    print(f"diffusers {diffusers.__version__}, peft {peft.__version__}; share of the strength\n")
    headers = ("adapter", *ROUTES, "lora-tools → kohya → peft")
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
