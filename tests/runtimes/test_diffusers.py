"""Each rule of diffusers, broken and kept; what the real diffusers loads, where it is installed."""

import json

import pytest
import torch
from conftest import FIXTURES, real
from judges import judge
from runtimes.craft import craft, file_of, fixed, pair

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.diffusers import DIFFUSERS

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = QUERY.replace("to_q", "to_k")
KOHYA = {"up": "lora_up.weight", "down": "lora_down.weight"}
FLAT = f"lora_unet_{QUERY.replace('.', '_')}"
UNET = pair(f"unet.{QUERY}", 2, 8, 8)
MIXED = UNET | pair(f"unet.{KEY}", 4, 8, 8)
ALPHA = {f"{FLAT}.alpha": torch.tensor(1.0)}
METADATA = {"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": [QUERY]}


def judged(path, version="0.42.1"):
    (runtime,) = runtimes.named([f"diffusers@{version}"])
    return runtimes.judge(runtimes.subject(path), runtime)


def less(tensors, mark):
    return {key: value for key, value in tensors.items() if mark not in key}


def processors(prefix):
    key_prefix = prefix + QUERY.replace(".to_q", ".processor.to_q")
    return {
        f"{key_prefix}_lora.down.weight": torch.randn(2, 8),
        f"{key_prefix}_lora.up.weight": torch.randn(8, 2),
    }


LOADS, WRONG, NO_EFFECT, REFUSED = Verdict
CASES = {
    "plain": (UNET, {}, LOADS, None),
    "mixed ranks": (MIXED, {}, LOADS, None),
    "metadata": (UNET, METADATA, LOADS, None),
    "kohya with alpha": ({**pair(FLAT, 2, 8, 8, **KOHYA), **ALPHA}, {}, LOADS, None),
    "kohya without alpha": (pair(FLAT, 2, 8, 8, **KOHYA), {}, LOADS, None),
    "mid": (pair(f"unet.{QUERY}", 2, 8, 8, "lora.up.weight", "lora.down.weight"), {}, LOADS, None),
    "processors": (processors("unet."), {}, LOADS, None),
    "bare processors": (processors(""), {}, NO_EFFECT, "component"),
    "PEFT's names": (pair(f"base_model.model.{QUERY}", 2, 8, 8), {}, NO_EFFECT, "component"),
    "no component": (pair(QUERY, 2, 8, 8), {}, NO_EFFECT, "component"),
    "alpha without lora": (
        {**UNET, f"unet.{QUERY}.alpha": torch.tensor(1.0)},
        {},
        REFUSED,
        "names-with-lora",
    ),
    "two scales": ({**pair(FLAT, 2, 8, 8, **KOHYA), **ALPHA}, METADATA, REFUSED, "two-scales"),
    "no lora": ({"unet:0:up": torch.ones(8, 2)}, {}, REFUSED, "no-lora"),
    "no B": (less(UNET, "lora_B"), {}, REFUSED, "no-b"),
    "no A once": (less(MIXED, "to_q.lora_A"), {}, WRONG, "incomplete"),
    "no B once": (
        less(UNET | pair(f"unet.{KEY}", 2, 8, 8), "to_q.lora_B"),
        {},
        WRONG,
        "incomplete",
    ),
}


def made(case, folder):
    tensors, metadata, *_ = CASES[case]
    header = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    return file_of(folder, "pytorch_lora_weights.safetensors", tensors, **header)


@pytest.mark.parametrize("case", CASES)
def test_the_table(case, tmp_path):
    *_, verdict, rule = CASES[case]
    judgement = judged(made(case, tmp_path))
    assert judgement.verdict == verdict
    assert rule is None or rule in {found.rule for found in judgement.findings}
    assert rule is not None or not [f for f in judgement.findings if "before" not in f.why]


@pytest.mark.parametrize("case", CASES)
def test_the_real_diffusers_agrees(case, tmp_path):
    path = made(case, tmp_path)
    assert judged(path).verdict == really(path)


def really(path) -> Verdict:
    """Load a file as a pipeline does, into a UNet, and look at what became of its modules."""
    diffusers = judge("diffusers")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    try:
        state, alphas, metadata = Loader.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            return_lora_metadata=True,
            unet_config=unet.config,
        )
        if not all("lora" in key for key in state):
            return Verdict.REFUSED  # `load_lora_weights` says so in these words
        Loader.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, adapter_name="x", metadata=metadata
        )
    except (ValueError, RuntimeError, IndexError, OSError):
        return Verdict.REFUSED
    layers = [m for m in unet.modules() if isinstance(m, BaseTunerLayer) and "x" in m.scaling]
    if not layers:
        return Verdict.NO_EFFECT
    stored = load_file(path)
    truths = runtimes.subject(path).truths
    count = sum(key.endswith((".lora_B.weight", "up.weight")) for key in stored)
    got = [float(layer.get_delta_weight("x").detach().norm()) for layer in layers]
    meant = sorted(norm(stored, key_prefix) * scale for key_prefix, scale in truths.items())
    right = count == len(truths) and sorted(got) == pytest.approx(meant, rel=1e-5)
    return Verdict.LOADS if right else Verdict.WRONG


def norm(tensors, key_prefix) -> float:
    factors = [
        value for key, value in tensors.items() if key.startswith(key_prefix) and value.ndim == 2
    ]
    if len(factors) < 2:
        return -1.0  # what is meant is not in the file
    down, up = sorted(factors, key=lambda value: value.shape[0])
    return float((up @ down).norm())


def test_a_file_that_others_trained():
    folder = real("diffusers-sd15-catundchat")
    assert judged(folder / "pytorch_lora_weights.safetensors").verdict == NO_EFFECT


def test_the_first_rank_was_everyones_alpha(tmp_path):
    path = made("mixed ranks", tmp_path)
    old = judged(path, "0.39.0")
    assert old.verdict == WRONG
    (found,) = old.findings
    assert found.rule == "first-alpha"
    assert found.where == (f"unet.{QUERY}",)  # to_k, of rank 4, comes first
    assert "2 times their strength" in found.why
    (remark,) = judged(path).findings
    assert remark.verdict == LOADS
    assert remark.why.startswith("before diffusers 0.40.0: loads at the wrong strength.")
    assert not judged(made("plain", tmp_path / "plain"), "0.39.0").findings


def test_metadata_that_is_no_json(tmp_path):
    path = file_of(tmp_path, "x.safetensors", UNET, lora_adapter_metadata="{")
    assert judged(path).verdict == REFUSED


def test_dora_of_kohya_is_taken_out(tmp_path):
    tensors = pair(FLAT, 2, 8, 8, **KOHYA) | {f"{FLAT}.dora_scale": torch.ones(8, 1)}
    (found,) = judged(file_of(tmp_path, "x.safetensors", tensors)).findings
    assert (found.rule, found.verdict) == ("dora-scale", WRONG)


def test_the_configuration_of_a_peft_adapter_is_not_read(tmp_path):
    fields = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "change": lambda _: UNET}
    found = next(
        f for f in judged(craft(tmp_path / "x", **fields)).findings if f.rule == "scale-one"
    )
    assert "0.5 times their strength" in found.why
    assert found.verdict == WRONG
    fields["lora_alpha"] = 2
    assert judged(craft(tmp_path / "y", **fields)).verdict == LOADS


def test_a_transformer_of_peft_is_mended(tmp_path):
    key_prefix = "base_model.model.transformer_blocks.0.attn.to_q"
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}
    folder = craft(tmp_path / "x", change=lambda _: pair(key_prefix), **fields)
    found = next(f for f in judged(folder).findings if f.rule == "scale-one")
    assert judged(fixed(found.fix, tmp_path)).verdict == LOADS


def test_language_models_do_nothing():
    (found,) = judged(FIXTURES / "minilm-plain").findings
    assert (found.rule, found.verdict) == ("component", NO_EFFECT)
    assert DIFFUSERS.version == "0.42.1"
