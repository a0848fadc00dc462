"""What distilled LoRAs add to biases and norms, in both dialects of a model."""

import numpy as np
import pytest
from dialects import converted, numbers_in, randomised
from image_models import CASES
from judges import judge
from safetensors.numpy import load_file, save_file

from lora_tools import read
from lora_tools.architectures.families import family
from lora_tools.errors import FormatError
from lora_tools.files.opening import open_checkpoint
from lora_tools.model import open_model
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

MODULES = {
    "Flux.1": (
        "double_blocks.0.img_attn.qkv",
        "double_blocks.1.txt_mlp.0",
        "single_blocks.0.linear1",
    ),
    "Wan": ("blocks.0.self_attn.q", "blocks.1.ffn.0"),
}
NORMS = {
    "Flux.1": ("double_blocks.0.img_attn.norm.query_norm",),
    "Wan": ("blocks.0.norm3", "blocks.1.cross_attn.norm_q"),
}
FREE = {"Flux.1": ("final_layer.linear",), "Wan": ("head.head",)}
"""Layers of which only the bias is changed."""


@pytest.fixture(params=MODULES)
def made(request, tmp_path):
    """Write a model in both dialects, and a LoRA that adds to biases and norms."""
    name = request.param
    case = next(case for case in CASES if case.name == name)
    model = randomised(getattr(judge("diffusers"), case.model)(**case.config))
    model.save_pretrained(tmp_path / "folder")
    fine = numbers_in(model.state_dict())
    coarse = converted(fine, family(name), "diffusers", "original")
    save_file(contiguous(coarse), tmp_path / "single.safetensors")
    draw = np.random.default_rng(0)
    tensors, added = {}, {}
    for module in MODULES[name]:
        a = draw.standard_normal((2, coarse[f"{module}.weight"].shape[1]))
        b = draw.standard_normal((coarse[f"{module}.weight"].shape[0], 2))
        tensors[f"diffusion_model.{module}.lora_A.weight"] = a
        tensors[f"diffusion_model.{module}.lora_B.weight"] = b
        added[f"{module}.weight"] = b @ a
    for module in (*MODULES[name], *FREE[name]):
        change = draw.standard_normal(coarse[f"{module}.bias"].shape)
        added[f"{module}.bias"] = tensors[f"diffusion_model.{module}.diff_b"] = change
    for module in NORMS[name]:
        key = next(key for key in coarse if key.startswith(f"{module}.") and "bias" not in key)
        change = draw.standard_normal(coarse[key].shape)
        added[key] = tensors[f"diffusion_model.{module}.diff"] = change
    save_file(contiguous(tensors), tmp_path / "lora.safetensors")
    return name, tmp_path, coarse, added


def contiguous(tensors):
    return {key: np.ascontiguousarray(v, np.float32) for key, v in tensors.items()}


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_they_are_added_in_either_dialect_and_verified(made, weight):
    name, place, coarse, added = made
    wanted = {key: array + weight * added.get(key, 0) for key, array in coarse.items()}
    fine = converted(wanted, family(name), "original", "diffusers")
    for base, expected in (("single.safetensors", wanted), ("folder", fine)):
        if base == "folder":  # where a bias without its layer has no table to find it by
            tensors = load_file(place / "lora.safetensors")
            kept = {k: v for k, v in tensors.items() if not k.startswith(bare(name))}
            save_file(kept, place / "lora.safetensors")
            back = {f"{m}.bias": added[f"{m}.bias"] for m in FREE[name]}
            only = {k: wanted[k] - weight * back.get(k, 0) for k in wanted}
            expected = converted(only, family(name), "original", "diffusers")
        adapter = WeightedAdapter(read(place / "lora.safetensors"), weight)
        made_plan = plan(open_model(place / base), [adapter])
        merge(made_plan).write(place / f"out-{base}")
        found = open_checkpoint(place / f"out-{base}")
        for key, array in expected.items():
            np.testing.assert_allclose(found[key].numpy(), array, rtol=1e-5, atol=1e-5)
        assert verify(found, made_plan).passed


def bare(name):
    return tuple(f"diffusion_model.{module}." for module in FREE[name])


def test_one_without_a_place_is_an_error(made):
    _, place, _, _ = made
    tensors = load_file(place / "lora.safetensors")
    tensors["diffusion_model.nowhere.0.norm.diff"] = np.ones(4, np.float32)
    save_file(tensors, place / "lora.safetensors")
    with pytest.raises(FormatError, match=r"nowhere.0.norm.diff: no such tensor for its norm"):
        plan(open_model(place / "folder"), [WeightedAdapter(read(place / "lora.safetensors"))])


def test_a_weight_may_be_set(made):
    name, place, coarse, _ = made
    module = FREE[name][0]
    own = np.random.default_rng(2).standard_normal(coarse[f"{module}.weight"].shape)
    tensors = load_file(place / "lora.safetensors")
    tensors[f"diffusion_model.{module}.set_weight"] = own.astype(np.float32)
    save_file(tensors, place / "lora.safetensors")
    adapter = WeightedAdapter(read(place / "lora.safetensors"))
    merge(plan(open_model(place / "single.safetensors"), [adapter])).write(place / "out")
    found = open_checkpoint(place / "out")[f"{module}.weight"].numpy()
    np.testing.assert_array_equal(found, own.astype(np.float32))
