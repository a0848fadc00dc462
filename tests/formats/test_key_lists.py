"""Key lists of real files, filled with random numbers: detected, and converted or refused."""

import json
import re

import pytest
import torch
from conftest import real
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Fixed
from lora_tools.update import factors
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink

# Format, number of modules, and for each target None, a number of modules, or a refusal.
LISTS = {
    "anima_lora_kohya": ("kohya", 11, {"comfyui": None}),
    "anima_lora_kohya_with_te": ("kohya", 9, {"comfyui": "does not load these names"}),
    "anima_lora_peft": ("comfyui", 6, {"kohya": None}),
    "flux_control_lora": (
        "comfyui",
        314,
        {"kohya": "bias: .*314|full weight: double_blocks.0.img_attn.norm.key_norm.scale"},
    ),
    "flux_dora_onetrainer": (
        "kohya",
        506,
        {"diffusers": "DoRA by column", "comfyui": "transformer"},
    ),
    "flux_lokr_bfl": ("comfyui", 6, {"kohya": None}),
    "flux_lora_aitoolkit": ("comfyui", 228, {"kohya": None, "diffusers": 418}),
    "flux_lora_diffusers_base_model": ("diffusers", 381, {"kohya": 191, "peft": None}),
    "flux_lora_diffusers": ("diffusers", 494, {"kohya": 304, "comfyui": 304, "peft": None}),
    "flux_lora_diffusers_no_proj_mlp": ("diffusers", 342, {"kohya": 190, "peft": None}),
    "flux_lora_kohya": ("kohya", 304, {"comfyui": None, "peft": 494, "diffusers": 494}),
    "flux_lora_kohya_with_te1": ("kohya", 376, {"comfyui": None, "peft": "holds one model"}),
    "flux_lora_xlabs": ("xlabs", 12, {"comfyui": None, "kohya": None, "diffusers": 24}),
    "krea2_lora_kohya": ("kohya", 40, {"comfyui": None}),
    "qwen_image_lora_diffusers": (
        "diffusers",
        3,
        {"diffusers": None, "kohya": "names are those of .*Flux.1.* and of Qwen-Image"},
    ),
    "qwen_image_lora_kohya": ("kohya", 8, {"diffusers": None}),
}


@pytest.fixture(params=LISTS)
def listed(request, tmp_path):
    """A file of random numbers under the keys of a real one, in smaller shapes."""
    return request.param, made_up(request.param, tmp_path)


def made_up(name, tmp_path):
    shapes = json.loads((real("invokeai-keyshapes") / f"{name}_format.json").read_text())
    torch.manual_seed(0)
    tensors = {
        key: torch.randn([size // 32 if size >= 256 else size for size in shape])
        if shape
        else torch.tensor(8.0)
        for key, shape in shapes.items()
    }
    file = tmp_path / "anything.safetensors"
    save_file(tensors, file)
    return file


def dense(adapter):
    return {name: factors(adapter[name]).dense("float64") for name in adapter}


def norm(deltas):
    return sum(float((delta**2).sum()) for delta in deltas.values())


def test_every_list_is_detected_and_converted_or_refused(listed, tmp_path):
    name, file = listed
    naming, count, targets = LISTS[name]
    adapter = read(file)
    assert adapter.format.name == naming
    assert len(adapter) == count
    assert adapter.manifest.specs.keys() == load_file(file).keys()
    for target, refusal in targets.items():
        if isinstance(refusal, str):
            with pytest.raises(UnsupportedError) as caught:
                convert(adapter, format_named(target))
            assert re.search(refusal, str(caught.value), re.DOTALL)
            continue
        converted = convert(adapter, format_named(target))
        assert len(converted) == (refusal or count)
        out = tmp_path / target
        out.mkdir()
        outcome = converted.report("convert")
        updates = outcome.watch(converted)
        write(out, converted.manifest, updates, like=adapter, format=converted.source.format)
        again = read(out)
        assert again.format.name == target
        before, after = dense(adapter), dense(again)
        assert outcome.error < 1e-6
        assert len(after) == (refusal or count)
        if refusal:  # layers are split or fused: tests/formats/test_flux.py has them one by one
            assert norm(after) == pytest.approx(norm(before), rel=1e-9)
            continue
        moved = dict(zip(before, (job.target.module.name for job in converted.jobs), strict=True))
        for module, delta in before.items():
            torch.testing.assert_close(
                torch.as_tensor(after[moved[module]]), torch.as_tensor(delta), rtol=1e-6, atol=1e-6
            )


def test_norms_that_fit_no_axis_are_refused(tmp_path):
    file = made_up("anima_lora_lokr", tmp_path)
    with pytest.raises(FormatError, match=r"k_proj: magnitude \[64\] fits neither axis"):
        read(file)


def test_every_list_is_in_a_test():
    names = {path.name for path in real("invokeai-keyshapes").glob("*.json")}
    assert names == {f"{name}_format.json" for name in [*LISTS, "anima_lora_lokr"]}


@pytest.mark.parametrize("name", ["flux_control_lora", "flux_lora_xlabs", "flux_lokr_bfl"])
def test_a_shrink_keeps_the_format_and_every_other_tensor(name, tmp_path):
    adapter = read(made_up(name, tmp_path))
    result = shrink(adapter, Fixed(2))
    (tmp_path / "out").mkdir()
    updates = result.report("shrink", "rank 2").watch(result)
    write(tmp_path / "out", result.manifest, updates, like=adapter)
    again = read(tmp_path / "out")
    assert again.format.name == adapter.format.name
    assert {module.name: module.r for module in again.manifest.modules} == {
        module.name: min(2, module.r) for module in adapter.manifest.modules
    }
    biases = [key for key in adapter.tensors if key.endswith(("lora_B.bias", ".scale"))]
    assert {key for key in again.tensors if not key.startswith("diffusion_model.")} <= set(
        adapter.tensors
    )
    moved = {key.removeprefix("diffusion_model."): key for key in again.tensors}
    assert len(biases) == sum(key.endswith(("lora_B.bias", ".scale")) for key in moved)


def test_norms_of_columns_in_a_pipelines_names_are_not_lost(tmp_path):
    key_prefix = "unet.mid_block.attentions.0.proj_in"
    tensors = {
        f"{key_prefix}.lora_down.weight": torch.randn(2, 6),
        f"{key_prefix}.lora_up.weight": torch.randn(4, 2),
        f"{key_prefix}.dora_scale": torch.randn(1, 6),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read(tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match=r"no name for .*dora_scale"):
        shrink(adapter, Fixed(1))
