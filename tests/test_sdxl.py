"""The whole road of a LoRA of Stable Diffusion XL, from kohya's file to merged models and back."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import sdxl
import torch
from judges import judge
from safetensors.numpy import load_file

from lora_tools.cli import cli

RANKS = {"xl.safetensors": 6, "xl": 2}
"""Of the LoRA; a single file fuses three layers of each of OpenCLIP's."""
LORA, SINGLE, FOLDER = "lora.safetensors", "xl.safetensors", "xl"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A pipeline, its single file, and a LoRA merged into both."""
    place = tmp_path_factory.mktemp("sdxl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdxl.pipeline(place / FOLDER)
    sdxl.single_file(place / FOLDER, place / SINGLE)
    sdxl.kohya(place / FOLDER, place / LORA)
    for base in (SINGLE, FOLDER):
        run("merge", place / base, place / LORA, place / f"merged-{base}")
    return place


def run(*words: object) -> int:
    """Run a command; it succeeds, or raises."""
    return int(cli.main([*map(str, words), "--quiet"], standalone_mode=False) or 0)


def loaded(place: Path, what: Path, config: str = FOLDER):
    """Return what diffusers loads of a folder or a single file."""
    pipeline = judge("diffusers").StableDiffusionXLPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if what.is_dir():
            return pipeline.from_pretrained(what)
        return pipeline.from_single_file(
            str(what), config=str(place / config), local_files_only=True
        )


@torch.no_grad()
def latents(pipe) -> np.ndarray:
    """Return an image of a prompt, by both text encoders and the UNet."""
    pipe.set_progress_bar_config(disable=True)
    ids = torch.tensor([[0, 5, 3, 7, 1, 1, 1, 1]])
    hidden, pooled = [], None
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        out = encoder(ids, output_hidden_states=True)
        pooled = out[0]
        hidden.append(out.hidden_states[-2])
    embeds = torch.cat(hidden, -1)
    image = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(embeds),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    return image.images.numpy()


def weights(place: Path, merged: Path) -> dict[str, np.ndarray]:
    """Return the weights of a single file as its pipeline has them, by diffusers' converters."""
    pipe = loaded(place, merged)
    parts = ("unet", "text_encoder", "text_encoder_2", "vae")
    return {
        f"{part}.{key}": tensor.numpy()
        for part in parts
        for key, tensor in getattr(pipe, part).state_dict().items()
    }


def test_both_containers_hold_the_same_merge_and_make_the_same_image(place):
    single, folder = place / f"merged-{SINGLE}" / SINGLE, place / f"merged-{FOLDER}"
    ours, theirs = weights(place, single), weights(place, folder)
    before = weights(place, place / FOLDER)
    assert ours.keys() == theirs.keys() == before.keys()
    changed = {key for key in before if not np.array_equal(before[key], theirs[key])}
    assert {key.partition(".")[0] for key in changed} == {"unet", "text_encoder", "text_encoder_2"}
    for key in before:
        assert np.array_equal(ours[key], theirs[key]), key
    images = [latents(loaded(place, each)) for each in (place / FOLDER, single, folder)]
    np.testing.assert_array_equal(images[1], images[2])
    assert np.abs(images[1] - images[0]).max() > 1e-3 * np.abs(images[0]).max()


def test_the_merge_is_what_the_file_of_kohya_adds(place):
    """By its own tensors alone, and by diffusers' loader of such files."""
    deltas = sdxl.kohya(place / FOLDER, place / "again.safetensors")
    before, after = load_file(place / SINGLE), load_file(place / f"merged-{SINGLE}" / SINGLE)
    unet = {k.removeprefix("lora_unet_"): d for k, d in deltas.items() if "unet" in k[:9]}
    for key, delta in unet.items():
        found = after[f"model.diffusion_model.{key}"].astype(float)
        np.testing.assert_allclose(
            found, before[f"model.diffusion_model.{key}"] + delta, rtol=1e-6, atol=1e-7
        )
    for number, part in enumerate(("text_encoder", "text_encoder_2"), 1):
        old, new = (sdxl.state(folder, part) for folder in (place / FOLDER, place / "merged-xl"))
        prefix = f"lora_te{number}_"
        own = {k.removeprefix(prefix): d for k, d in deltas.items() if k.startswith(prefix)}
        assert own
        for key, delta in own.items():
            name = key if key in old else key.removeprefix("text_model.")
            np.testing.assert_allclose(new[name], old[name] + delta, rtol=1e-6, atol=1e-7)


def test_diffusers_computes_the_same_with_the_lora_loaded(place):
    pipe = loaded(place, place / FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(place, weight_name=LORA)
    live, merged = latents(pipe), latents(loaded(place, place / f"merged-{FOLDER}"))
    np.testing.assert_allclose(live, merged, rtol=1e-3, atol=1e-4 * np.abs(merged).max())


@pytest.mark.parametrize("base", [SINGLE, FOLDER])
def test_the_merge_is_verified(place, base):
    folder = place / f"merged-{base}"
    assert (
        run("verify", folder / base if base == SINGLE else folder, place / base, place / LORA) == 0
    )
    assert run("verify", place / base, place / base, place / LORA) == 1


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (SINGLE, "kohya"),
        (FOLDER, "diffusers"),
        *(
            pytest.param(base, target, marks=pytest.mark.slow)
            for base, target in (
                (SINGLE, "comfyui"),
                (SINGLE, "diffusers"),
                (FOLDER, "comfyui"),
                (FOLDER, "kohya"),
            )
        ),
    ],
)
def test_it_is_extracted_again_and_loads_at_once(place, base, target, tmp_path):
    merged = place / f"merged-{base}"
    tuned = merged / base if base == SINGLE else merged
    out = tmp_path / "out"
    assert run("extract", place / base, tuned, out, "--rank", RANKS[base], "--to", target) == 0
    assert run("merge", place / FOLDER, out, tmp_path / "again") == 0
    wanted, found = (
        weights(place, merged / base if base == SINGLE else merged),
        weights(place, tmp_path / "again"),
    )
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-3, atol=2e-5), key
    if target == "comfyui":  # whose names for a UNet diffusers has no map of
        return
    pipe = loaded(place, place / FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(out)
    image = latents(loaded(place, tmp_path / "again"))
    np.testing.assert_allclose(latents(pipe), image, rtol=1e-2, atol=1e-3 * np.abs(image).max())
