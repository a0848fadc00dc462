"""The commands of docs/image-models.md run, section by section, and do what the page says."""

import re
import shlex
import warnings
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import sdxl
from image_models import CASES
from judges import judge
from safetensors.numpy import load_file, save_file

from lora_tools.cli import cli

PAGE = (Path(__file__).parent.parent / "docs" / "image-models.md").read_text(encoding="utf-8")
SECTIONS = {
    title: [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A checkpoint, its pipeline, a style for them, and a fine-tune."""
    place = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdxl.pipeline(place / "sdxl-pipeline")
    sdxl.single_file(place / "sdxl-pipeline", place / "sdxl.safetensors")
    sdxl.kohya(place / "sdxl-pipeline", place / "style.safetensors")
    tensors = load_file(place / "sdxl.safetensors")
    draw = np.random.default_rng(0)
    for key in list(tensors):
        if tensors[key].ndim == 2 and "attn" in key:
            tensors[key] = tensors[key] + 0.1 * draw.standard_normal(tensors[key].shape)
    decoder = "first_stage_model.decoder.conv_in.weight"
    tensors[decoder] = tensors[decoder] + 1
    save_file(
        {k: v.astype(np.float32) for k, v in tensors.items()}, place / "my-finetune.safetensors"
    )
    wan = next(case for case in CASES if case.name == "Wan")
    model = judge("diffusers").WanTransformer3DModel(**wan.config)
    lora = {}
    for block in range(wan.config["num_layers"]):
        for layer in ("self_attn.q", "cross_attn.o", "ffn.0"):
            out, inp = {"ffn.0": (40, 32)}.get(layer, (32, 32))
            path = f"lora_unet_blocks_{block}_{layer.replace('.', '_')}"
            lora[f"{path}.lora_down.weight"] = draw.standard_normal((4, inp))
            lora[f"{path}.lora_up.weight"] = draw.standard_normal((out, 4))
            lora[f"{path}.alpha"] = np.array([2.0])
    assert model.config.ffn_dim == 40
    save_file({k: v.astype(np.float32) for k, v in lora.items()}, place / "wan-musubi.safetensors")
    return place


@pytest.fixture
def ran(models, tmp_path, monkeypatch):
    """Return what runs a section's commands beside the models, and checks that each has worked."""

    def run(title: str) -> Path:
        for file in models.iterdir():
            (tmp_path / file.name).symlink_to(file)
        monkeypatch.chdir(tmp_path)
        assert len(SECTIONS[title]) >= 2
        for line in SECTIONS[title]:
            words = shlex.split(line)[1:]
            assert not cli.main(
                [*words, *(["--quiet"] if words[0] != "inspect" else [])], standalone_mode=False
            )
            out = list(takewhile(lambda word: not word.startswith("-"), words))[-1]
            assert Path(out).exists()
        return tmp_path

    return run


def test_my_sdxl_lora_is_800_mb(ran):
    place = ran("My SDXL LoRA is 800 MB")
    before = load_file(place / "style.safetensors")
    for name in ("style-small", "style-half"):
        assert {k.partition(".")[0] for k in load_file(place / name / "style.safetensors")} == {
            k.partition(".")[0] for k in before
        }
    half = load_file(place / "style-half" / "style.safetensors")
    assert sum(v.size for v in half.values()) <= 0.6 * sum(v.size for v in before.values())


def test_merge_a_style_into_my_checkpoint(ran):
    place = ran("Merge a style into my checkpoint")
    merged, base = (load_file(place / p) for p in ("merged/sdxl.safetensors", "sdxl.safetensors"))
    assert merged.keys() == base.keys()
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in base.items()}
    changed = {k.partition(".")[0] for k in base if not np.array_equal(merged[k], base[k])}
    assert changed == {"model", "conditioner"}
    pipeline = place / "merged-pipeline"
    assert (pipeline / "model_index.json").exists()
    unet = sdxl.state(pipeline, "unet")["conv_in.weight"]
    np.testing.assert_array_equal(unet, merged["model.diffusion_model.input_blocks.0.0.weight"])


def test_musubi_to_comfyui(ran):
    place = ran("musubi → ComfyUI")
    names = set(load_file(place / "wan-comfyui.safetensors"))
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in names
    (file,) = (place / "wan-diffusers").glob("*.safetensors")
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in set(load_file(file))


def test_a_lora_from_two_checkpoints(ran):
    place = ran("A LoRA from two checkpoints")
    (file,) = (place / "my-lora").glob("*.safetensors")
    assert all(key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for key in load_file(file))
    assert (
        "first_stage_model.decoder.conv_in"
        in (place / "my-lora" / "lora_tools_report.json").read_text()
    )
