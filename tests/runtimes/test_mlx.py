"""Each rule of mlx-lm, broken and kept."""

import json
import shutil

import pytest
import torch
from conftest import FIXTURES, real
from runtimes.craft import file_of, pair

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.mlx import MLX

Q = "model.layers.{}.self_attn.q_proj"
NAMES = {"up": "lora_a", "down": "lora_b"}  # transposed: (in, rank) and (rank, out)
SOUND = {
    "num_layers": 2,
    "fine_tune_type": "lora",
    "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.0},
}


def adapter(folder, tensors=None, file="adapters.safetensors", **config):
    sound = pair(Q.format(2), **NAMES) | pair(Q.format(3), **NAMES)
    file_of(folder, file, sound if tensors is None else tensors)
    (folder / "adapter_config.json").write_text(json.dumps(SOUND | config))
    return folder


def judged(folder):
    return runtimes.judge(runtimes.subject(folder), MLX)


def test_a_plain_adapter_loads(tmp_path):
    assert not judged(adapter(tmp_path)).findings


CASES = {
    "tensor-file": {"file": "0000100_adapters.safetensors"},
    "fields": {"lora_parameters": {"rank": 4, "alpha": 16, "dropout": 0.0}},
    "keys": {"tensors": {**pair(Q.format(3), **NAMES), "model.norm.weight": torch.ones(2)}},
    "shapes": {"tensors": pair(Q.format(3), up="lora_b", down="lora_a")},
    "layers": {"tensors": pair(Q.format(1), **NAMES) | pair(Q.format(3), **NAMES)},
}


@pytest.mark.parametrize("rule", CASES)
def test_refused(rule, tmp_path):
    (found,) = judged(adapter(tmp_path, **CASES[rule])).findings
    assert (found.rule, found.verdict) == (rule, Verdict.REFUSED)


def test_factors_as_peft_has_them_are_called_transposed(tmp_path):
    (found,) = judged(adapter(tmp_path, **CASES["shapes"])).findings
    assert "1 pairs are transposed" in found.why


def test_another_rank(tmp_path):
    (found,) = judged(adapter(tmp_path, tensors=pair(Q.format(3), 6, **NAMES))).findings
    assert "1 pairs are of another rank" in found.why


@pytest.mark.parametrize("how", [{"num_layers": -1}, {"num_layers": 3}])
def test_layers_that_are_adapted(how, tmp_path):
    assert not judged(adapter(tmp_path, CASES["layers"]["tensors"], **how)).findings


def test_a_magnitude_goes_with_dora(tmp_path):
    tensors = pair(Q.format(3), **NAMES) | {Q.format(3) + ".m": torch.ones(8)}
    assert judged(adapter(tmp_path / "x", tensors)).verdict == Verdict.REFUSED
    assert not judged(adapter(tmp_path / "y", tensors, fine_tune_type="dora")).findings


def test_experts_are_not_transposed(tmp_path):
    key_prefix = "model.layers.3.mlp.switch_mlp.up_proj"
    tensors = {
        f"{key_prefix}.lora_a": torch.ones(3, 4, 6),
        f"{key_prefix}.lora_b": torch.ones(3, 8, 4),
    }
    assert not judged(adapter(tmp_path, tensors)).findings


def test_a_peft_adapter_is_refused():
    (found,) = judged(FIXTURES / "minilm-plain").findings
    assert (found.rule, found.verdict) == ("tensor-file", Verdict.REFUSED)


def test_a_real_adapter_loads_and_its_alpha_is_not_read(tmp_path):
    folder = real("mlx-qwen05b")
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict) == ("alpha", Verdict.LOADS)
    assert found.why == "alpha 16 is not read; the scale is 10.0"
    shutil.copy(folder / "adapters.safetensors", tmp_path)
    (found,) = judged(tmp_path).findings
    assert (found.rule, found.verdict) == ("config", Verdict.REFUSED)
