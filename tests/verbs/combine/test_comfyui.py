"""ComfyUI's rules for names and scales, as facts, load what was combined for it.

It knows every weight of its own model by ``diffusion_model.`` and the path, and by ``lora_unet_``
and the path without dots; a module's tensors end as any of the trainers' do; alpha is a tensor
beside them, divided by the rows of the lower one, and none is a scale of 1. What is no such name
is left out with a warning.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_tools.cli import cli

SUFFIXES = (("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"))


def loaded(path, weights):
    """Return the weights of a model with a LoRA, and the names that have no place in it."""
    tensors = load_file(path)
    names = {key.removesuffix(".weight"): key for key in weights}
    names |= {
        "lora_unet_" + name.removeprefix("diffusion_model.").replace(".", "_"): key
        for name, key in names.items()
    }
    result, known = dict(weights), set()
    for name, key in names.items():
        for up, down in SUFFIXES:
            if f"{name}.{up}" not in tensors:
                continue
            b, a = (tensors[f"{name}.{suffix}"].double().flatten(1) for suffix in (up, down))
            alpha = tensors.get(f"{name}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / a.shape[0]
            result[key] = result[key] + scale * (b @ a).reshape(weights[key].shape)
            known |= {f"{name}.{suffix}" for suffix in (up, down, "alpha")}
    return result, tensors.keys() - known


def run(*arguments):
    cli.main([str(word) for word in arguments], standalone_mode=False)


def factors(seed, out, inp, rank):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, inp, generator=generator)


def kohya(path, modules, alpha):
    """Write a LoRA as sd-scripts does; return the update of each module."""
    tensors, updates = {}, {}
    for seed, (name, (out, inp)) in enumerate(modules.items()):
        b, a = factors(seed, out, inp, 4)
        tensors |= {
            f"{name}.lora_up.weight": b,
            f"{name}.lora_down.weight": a,
            f"{name}.alpha": torch.tensor(alpha),
        }
        updates[name] = alpha / 4 * b.double() @ a.double()
    save_file(tensors, path)
    return updates


@pytest.mark.parametrize("target", ["comfyui", "kohya"])
def test_a_unet(target, tmp_path):
    """One file has diffusers' names, the other the original ones; a module has no twin."""
    attention = "transformer_blocks.0.attn1.to_q"
    sizes = {"input_blocks.4.1": 640, "middle_block.1": 1280, "output_blocks.0.1": 1280}
    weights = {
        f"diffusion_model.{block}.{attention}.weight": torch.randn(size, size).double()
        for block, size in sizes.items()
    }
    flat = attention.replace(".", "_")
    original = [f"lora_unet_{block.replace('.', '_')}_{flat}" for block in sizes]
    diffusers = [
        f"lora_unet_{block}_{flat}"
        for block in ("down_blocks_1_attentions_0", "mid_block_attentions_0")
    ]
    squares = [(size, size) for size in sizes.values()]
    first = kohya(tmp_path / "1.safetensors", dict(zip(original, squares, strict=True)), 2.0)
    twins = dict(zip(diffusers, squares[:2], strict=True))
    second = kohya(tmp_path / "2.safetensors", twins, 8.0)
    out = tmp_path / "out.safetensors"
    sources = (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    run("combine", *sources, out, "--weight", 0.7, "--weight", -0.5, "--to", target, "--quiet")
    found, strange = loaded(out, weights)
    assert not strange
    for key, name, twin in zip(weights, original, [*diffusers, None], strict=True):
        wanted = weights[key] + 0.7 * first[name] - 0.5 * (second[twin] if twin else 0)
        torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-4)


def test_flux(tmp_path):
    """Queries, keys and values are apart in one file and fused in the other, as in ComfyUI."""
    width = 3072
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    single = "diffusion_model.single_blocks.0.linear2.weight"
    weights = {key: torch.zeros(3 * width, width).double()}
    weights[single] = torch.zeros(width, 5 * width).double()
    apart = {}
    tensors = {}
    for seed, name in enumerate(("to_q", "to_k", "to_v")):
        b, a = factors(10 + seed, width, width, 2)
        prefix = f"transformer.transformer_blocks.0.attn.{name}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        apart[name] = b.double() @ a.double()
    b, a = factors(20, width, 5 * width, 2)
    prefix = "transformer.single_transformer_blocks.0.proj_out"
    tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(tensors, tmp_path / "1.safetensors")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    fused = kohya(tmp_path / "2.safetensors", {name: (3 * width, width)}, 4.0)
    out = tmp_path / "out.safetensors"
    sources = (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    run("combine", *sources, out, "--weight", 1, "--weight", 0.5, "--to", "comfyui", "--quiet")
    found, strange = loaded(out, weights)
    assert not strange
    wanted = torch.cat([*apart.values()]) + 0.5 * fused[name]
    torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[single], b.double() @ a.double(), rtol=1e-5, atol=1e-4)
