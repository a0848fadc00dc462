"""Each rule of ComfyUI, broken and kept, on key namings of every tool."""

import json

import pytest
import torch
from conftest import FIXTURES, REAL, real
from runtimes.craft import craft, file_of, fixed, pair

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.comfyui import COMFYUI

KOHYA = {"up": "lora_up.weight", "down": "lora_down.weight"}
FLAT = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
SD3 = "base_model.model.transformer_blocks.0.attn.to_q"


def judged(path):
    return runtimes.judge(runtimes.subject(path), COMFYUI)


def kohya(rank=4, alpha=2.0, dtype=torch.float32):
    return {**pair(FLAT, rank, **KOHYA), f"{FLAT}.alpha": torch.tensor(alpha, dtype=dtype)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_alpha_beside_each_pair_is_read(dtype, tmp_path):
    path = file_of(tmp_path, "lora.safetensors", kohya(dtype=dtype))
    assert not judged(path).findings
    assert runtimes.subject(path).scalars[f"{FLAT}.alpha"] == 2
    assert runtimes.subject(path).truths == {FLAT: 0.5}


def test_no_alpha_is_scale_1(tmp_path):
    path = file_of(tmp_path, "lora.safetensors", pair(FLAT, **KOHYA))
    assert not judged(path).findings
    assert runtimes.subject(path).truths == {FLAT: 1.0}


def test_an_alpha_of_0_is_none_to_kohya_and_nothing_here(tmp_path):
    (found,) = judged(file_of(tmp_path, "lora.safetensors", kohya(alpha=0.0))).findings
    assert (found.rule, found.verdict) == ("alpha", Verdict.WRONG)
    assert "0 in place of 1" in found.why


def sd3(tmp_path, **config):
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q"]} | config
    return craft(tmp_path / "peft", change=lambda _: pair(SD3), **fields)


def test_the_alpha_of_a_peft_adapter_is_not_read(tmp_path):
    folder = sd3(tmp_path)
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict, found.where) == ("alpha", Verdict.WRONG, (SD3[17:],))
    assert "0.5 times their strength" in found.why
    assert not judged(fixed(found.fix, tmp_path)).findings
    assert not judged(sd3(tmp_path / "other", lora_alpha=4)).findings


def test_names_of_language_models_do_nothing():
    (found,) = judged(FIXTURES / "minilm-plain").findings
    assert (found.rule, found.verdict) == ("peft-names", Verdict.NO_EFFECT)


@pytest.mark.parametrize(
    ("key_prefix", "verdict"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", Verdict.NO_EFFECT),
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            Verdict.LOADS,
        ),
        ("unet.down_blocks.1.attentions.0.proj_in", Verdict.LOADS),
        ("transformer.transformer_blocks.0.attn.to_q", Verdict.LOADS),
        ("diffusion_model.double_blocks.0.img_attn.qkv", Verdict.LOADS),
    ],
)
def test_names_of_a_unet(key_prefix, verdict, tmp_path):
    judgement = judged(file_of(tmp_path, "lora.safetensors", pair(key_prefix)))
    assert judgement.verdict == verdict
    assert [f.rule for f in judgement.findings] == ["unet-names"] * (verdict != Verdict.LOADS)


def test_other_spellings_do_nothing():
    (found,) = judged(real("mlx-qwen05b")).findings
    assert (found.rule, found.verdict) == ("naming", Verdict.NO_EFFECT)
    assert len(found.where) == 8


def test_a_half_of_a_pair(tmp_path):
    whole = {**pair(FLAT, **KOHYA), **pair(FLAT + "_2", **KOHYA)}
    up = {k: v for k, v in whole.items() if not k.endswith("_2.lora_down.weight")}
    down = {k: v for k, v in whole.items() if not k.endswith("_2.lora_up.weight")}
    (found,) = judged(file_of(tmp_path / "up", "x.safetensors", up)).findings
    assert (found.rule, found.verdict) == ("incomplete", Verdict.REFUSED)
    (found,) = judged(file_of(tmp_path / "down", "x.safetensors", down)).findings
    assert (found.rule, found.verdict) == ("half", Verdict.WRONG)


def test_magnitudes_of_peft_are_not_read(tmp_path):
    tensors = pair(SD3) | {f"{SD3}.lora_magnitude_vector": torch.ones(8)}
    folder = craft(
        tmp_path / "x",
        change=lambda _: tensors,
        r=4,
        lora_alpha=4,
        use_dora=True,
        target_modules=["to_q"],
    )
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict) == ("magnitude", Verdict.WRONG)


def test_real_attention_processors_load():
    folder = real("diffusers-sd15-catundchat")
    assert not judged(folder / "pytorch_lora_weights.safetensors").findings


SHAPES = sorted((REAL / "invokeai-keyshapes").glob("*.json"))


@pytest.mark.parametrize("path", SHAPES or [None], ids=lambda path: path and path.stem)
def test_files_that_its_users_load(path, tmp_path):
    real("invokeai-keyshapes")
    shapes = json.loads(path.read_text())
    tensors = {k: torch.ones(shape) for k, shape in shapes.get("state_dict", shapes).items()}
    verdict = judged(file_of(tmp_path, "x.safetensors", tensors)).verdict
    # PEFT's prefix is not in the table of Flux, and XLabs has nodes of its own; the others load.
    lost = "base_model" in path.stem or "xlabs" in path.stem
    expected = Verdict.NO_EFFECT if lost else Verdict.LOADS
    assert verdict == expected


@pytest.mark.parametrize("name", ["sam-lora/lora_rank2", "lora-diffusion-cloneofsimo/lora_disney"])
def test_unknown_spellings_do_nothing(name):
    folder, file = name.split("/")
    (found,) = judged(real(folder) / f"{file}.safetensors").findings
    assert (found.rule, found.verdict) == ("no-factors", Verdict.NO_EFFECT)
