"""Ways of an adapter from the file that peft wrote to a loader: other tools', and ours."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import peers
import peft
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Deltas = dict[str, torch.Tensor]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
KEPT = 4
"""The rank that is kept by truncations, and that every update of the matrix truly has."""


def unet() -> diffusers.UNet2DConditionModel:
    """Return a UNet of a few layers, always of the same weights."""
    torch.manual_seed(99)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )


def run(*command: object) -> None:
    """Run a command; what it says on its way out becomes the error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "failed")


def ours(*arguments: object) -> None:
    """Run lora-tools."""
    run(sys.executable, "-m", "lora_tools", *arguments, "--quiet")


def by_lora_tools(target: str) -> Callable[[Path, Path], Path]:
    """Return a conversion by lora-tools."""

    def convert(source: Path, out: Path) -> Path:
        ours("convert", source, out, "--to", target)
        return next(out.glob("*.safetensors"))

    return convert


def there_and_back(source: Path, out: Path) -> Path:
    """Convert to kohya's naming and back to peft's."""
    return by_lora_tools("peft")(by_lora_tools("kohya")(source, out / "kohya"), out / "peft")


def by_diffusers(source: Path, out: Path) -> Path:
    """Convert to kohya's naming with diffusers' own function, which takes no alpha."""
    tensors = load_file(source / WEIGHTS)
    named = {key.replace(PREFIX, "unet."): value for key, value in tensors.items()}
    out.mkdir()
    save_file(convert_state_dict_to_kohya(named), out / "lora.safetensors")
    return out / "lora.safetensors"


def by_sft(source: Path, out: Path) -> Path:
    """Convert to kohya's suffixes with sft."""
    out.mkdir()
    sft("lora", "convert", source / WEIGHTS, "--to", "kohya", "--output", out / "x.safetensors")
    return out / "x.safetensors"


def by_sft_from_kohya(source: Path, out: Path) -> Path:
    """Convert to kohya's naming with lora-tools, and to peft's suffixes with sft."""
    file = by_lora_tools("kohya")(source, out / "kohya")
    sft("lora", "convert", file, "--to", "peft", "--output", out / "x.safetensors")
    return out / "x.safetensors"


def cut_by_lora_tools(source: Path, out: Path) -> Path:
    """Lower the rank with lora-tools."""
    ours("shrink", source, out, "--rank", KEPT)
    return out / WEIGHTS


def cut_by_sft(source: Path, out: Path) -> Path:
    """Lower the rank with sft, the configuration beside the file as it was."""
    out.mkdir()
    sft("lora", "resize", source / WEIGHTS, "--rank", KEPT, "--output", out / WEIGHTS)
    if not (out / CONFIG).exists():
        shutil.copyfile(source / CONFIG, out / CONFIG)
    return out / WEIGHTS


def cut_by_gradience(source: Path, out: Path) -> Path:
    """Lower the rank with gradience."""
    command = peers.GRADIENCE.script("gradience"), "truncate", "--rank", KEPT, "--dtype", "fp32"
    run(*command, "--peft-dir", source, "--out-dir", out)
    return next(out.rglob(WEIGHTS))


def merged_by_lora_tools(source: Path, out: Path) -> Path:
    """Merge into the UNet with lora-tools."""
    ours("merge", base(source.parent), source, out)
    return next(out.glob("*.safetensors"))


def merged_by_sft(source: Path, out: Path) -> Path:
    """Merge into the UNet with sft."""
    out.mkdir()
    file = base(source.parent)
    sft("lora", "merge", file, source / WEIGHTS, "--output", out / "merged.safetensors")
    return out / "merged.safetensors"


def sft(*arguments: object) -> None:
    """Run sft."""
    run(peers.SFT.script("sft"), *arguments)


def base(folder: Path) -> Path:
    """Return a file of the UNet's weights."""
    file = folder / "base" / "model.safetensors"
    if not file.exists():
        file.parent.mkdir()
        save_file(unet().state_dict(), file)
    return file


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


def in_the_file(file: Path) -> Deltas:
    """Return alpha / rank · up · down, where alpha is a tensor or, for sft, in the header."""
    tensors, found = load_file(file), {}
    with safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
    names = {path.replace(".", "_"): path for path, _ in unet().named_modules()}
    for key, a in tensors.items():
        stem = key.removesuffix(".lora_A.weight").removesuffix(".lora_down.weight")
        if stem == key:
            continue
        up = tensors.get(f"{stem}.lora_B.weight", tensors.get(f"{stem}.lora_up.weight"))
        alpha = float(tensors.get(f"{stem}.alpha", header.get("alpha", len(a))))
        path = names[stem.removeprefix(PREFIX).removeprefix("lora_unet_").replace(".", "_")]
        shape = unet().get_submodule(path).weight.shape
        found[path] = alpha / len(a) * (up.flatten(1) @ a.flatten(1)).reshape(shape)
    return found


def in_the_model(file: Path) -> Deltas:
    """Return what has been added to the weights."""
    model, merged = unet().state_dict(), load_file(file)
    changed = {key for key in model if not torch.equal(model[key], merged[key])}
    return {key.removesuffix(".weight"): merged[key] - model[key] for key in changed}


Route = tuple[Callable[[Path, Path], Path], Callable[[Path], Deltas]]
ROUTES: dict[str, Route] = {
    "peft, as it is → peft": (lambda source, _: source / WEIGHTS, in_peft),
    "lora-tools convert → diffusers → diffusers": (by_lora_tools("diffusers"), in_diffusers),
    "lora-tools convert → kohya → diffusers": (by_lora_tools("kohya"), in_diffusers),
    "lora-tools convert → kohya → by definition": (by_lora_tools("kohya"), in_the_file),
    "lora-tools convert → kohya → lora-tools convert → peft": (there_and_back, in_peft),
    "diffusers' function → kohya → diffusers": (by_diffusers, in_diffusers),
    "sft lora convert → kohya → by definition": (by_sft, in_the_file),
    "lora-tools convert → kohya → sft lora convert → its header": (by_sft_from_kohya, in_the_file),
    f"lora-tools shrink --rank {KEPT} → peft": (cut_by_lora_tools, in_peft),
    f"sft lora resize --rank {KEPT} → peft": (cut_by_sft, in_peft),
    f"gradience truncate --rank {KEPT} → peft": (cut_by_gradience, in_peft),
    "lora-tools merge": (merged_by_lora_tools, in_the_model),
    "sft lora merge": (merged_by_sft, in_the_model),
}
