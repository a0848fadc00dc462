"""A tiny Stable Diffusion XL: its pipeline's folder, its single file, and a LoRA from kohya."""

from pathlib import Path

import numpy as np
import torch
from dialects import converted, randomised
from image_models import CASES
from judges import judge
from safetensors.numpy import save_file

from lora_tools.architectures.families import family

UNET, VAE = (
    next(case for case in CASES if case.name == name)
    for name in ("Stable Diffusion XL", "AutoencoderKL")
)
WORDS = 12
CLIP = {
    "vocab_size": WORDS,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
RANK = 2


def pipeline(folder: Path) -> Path:
    """Save the pipeline as diffusers does."""
    diffusers, transformers = judge("diffusers"), judge("transformers")
    first, second = (
        transformers.CLIPTextConfig(**CLIP, hidden_size=width, projection_dim=width)
        for width in (6, 10)  # together the UNet's context
    )
    models = {
        "unet": diffusers.UNet2DConditionModel(
            **UNET.config | {"projection_class_embeddings_input_dim": 6 * 8 + 10}
        ),
        "text_encoder": transformers.CLIPTextModel(first),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(second),
        "vae": diffusers.AutoencoderKL(**VAE.config),
    }
    for model in models.values():
        randomised(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.1)
    pipe = diffusers.StableDiffusionXLPipeline(
        **models, tokenizer=None, tokenizer_2=None, scheduler=diffusers.EulerDiscreteScheduler()
    )
    pipe.save_pretrained(folder)
    return folder


def single_file(folder: Path, file: Path) -> Path:
    """Write a pipeline as sgm's checkpoint, by names and rows that diffusers' converters judge."""
    parts = {
        part: state(folder, part) for part in ("unet", "text_encoder", "text_encoder_2", "vae")
    }
    xl, clip = family("Stable Diffusion XL"), family("CLIP")
    first = {
        k if k.startswith("text_model.") else f"text_model.{k}": v
        for k, v in parts["text_encoder"].items()
    }
    tensors = {
        "model.diffusion_model.": converted(parts["unet"], xl, "diffusers", "original"),
        "conditioner.embedders.0.transformer.": first,
        "conditioner.embedders.1.model.": converted(
            parts["text_encoder_2"], clip, "transformers", "openclip"
        )
        | {"logit_scale": np.float32([4.6])},
        "first_stage_model.": converted(
            parts["vae"], family("AutoencoderKL"), "diffusers", "original"
        ),
    }
    flat = {pre + key: v for pre, own in tensors.items() for key, v in own.items()}
    save_file({key: np.ascontiguousarray(v) for key, v in flat.items()}, file)
    return file


def state(folder: Path, part: str) -> dict[str, np.ndarray]:
    """Return the weights of a model of a pipeline."""
    from safetensors.numpy import load_file

    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def kohya(folder: Path, file: Path) -> dict[str, np.ndarray]:
    """Write a LoRA of the UNet and both text encoders as sd-scripts does; return what each adds.

    The differences are by the names of the single file for the UNet, of transformers for encoders.
    """
    draw = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {}
    changes: dict[str, np.ndarray] = {}
    unet = converted(state(folder, "unet"), family("Stable Diffusion XL"), "diffusers", "original")
    parts = {"lora_unet_": unet} | {
        prefix: {
            f"text_model.{k.removeprefix('text_model.')}": v for k, v in state(folder, part).items()
        }
        for prefix, part in (("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"))
    }
    for prefix, weights in parts.items():
        for key, weight in weights.items():
            module = key.removesuffix(".weight")
            if weight.ndim < 2 or "embed" in key or "projection" in key:
                continue
            b = draw.standard_normal((len(weight), RANK, *[1] * (weight.ndim - 2)))
            a = draw.standard_normal((RANK, *weight.shape[1:]))
            path = prefix + module.replace(".", "_")
            own = {
                "lora_down.weight": 0.1 * a,
                "lora_up.weight": 0.1 * b,
                "alpha": np.array(RANK / 2),
            }
            tensors |= {f"{path}.{name}": value.astype(np.float32) for name, value in own.items()}
            up, down = (
                tensors[f"{path}.lora_{side}.weight"].astype(float) for side in ("up", "down")
            )
            delta = 0.5 * up.reshape(len(up), -1) @ down.reshape(RANK, -1)
            changes[prefix + key] = delta.reshape(weight.shape)
    save_file(tensors, file)
    return changes
