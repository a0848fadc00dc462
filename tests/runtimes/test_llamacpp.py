"""Each rule of llama.cpp's converter and loader, broken and kept."""

import pytest
import torch
from conftest import FIXTURES
from runtimes.craft import craft, fixed, pair, renamed, without

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.llamacpp import LLAMACPP

PLAIN = FIXTURES / "minilm-plain"
NORM = "base_model.model.model.layers.0.input_layernorm.weight"
HEAD = "base_model.model.lm_head"


def judged(folder):
    return runtimes.judge(runtimes.subject(folder), LLAMACPP)


def rules(folder):
    return {found.rule: found for found in judged(folder).findings}


def test_a_plain_adapter_loads():
    assert not judged(PLAIN).findings


REFUSED = {
    "fields": {"lora_alpha": ...},
    "types": {"lora_alpha": "32"},
    "tensor-file": {"file": "lora.safetensors"},
    "no-factors": {"change": renamed(".lora_", ".lora_other_")},
    "keys": {
        "change": lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}
    },
    "incomplete": {"change": without("layer.0.attention.self.query.lora_B")},
    "matrices": {"fixture": "conv-mixed"},
    "stacked-experts": {"fixture": "moe-experts"},
    "transposed": {"fixture": "gpt2-conv1d"},
}


@pytest.mark.parametrize("rule", REFUSED)
def test_refused(rule, tmp_path):
    folder = craft(tmp_path / "bad", **REFUSED[rule])
    assert judged(folder).verdict == Verdict.REFUSED
    assert rule in rules(folder)


def test_without_configuration(tmp_path):
    folder = craft(tmp_path / "bad")
    (folder / "adapter_config.json").unlink()
    assert list(rules(folder)) == ["config"]


def test_norms_are_let_through(tmp_path):
    folder = craft(tmp_path / "good", change=lambda t: {**t, NORM: torch.ones(4)})
    assert judged(folder).verdict == Verdict.LOADS


def test_a_head_is_refused_if_it_is_tied(tmp_path):
    folder = craft(
        tmp_path / "bad",
        change=lambda t: {**t, **pair(HEAD, 16)},
        target_modules=["query", "value", "lm_head"],
    )
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict, found.where) == ("tied-head", Verdict.LOADS, ("lm_head",))


@pytest.mark.parametrize("name", ["minilm-patterns", "minilm-rslora"])
def test_one_alpha_over_each_rank(name, tmp_path):
    assert judged(FIXTURES / name).verdict == Verdict.WRONG
    found = rules(FIXTURES / name)["one-alpha"]
    out = fixed(found.fix, tmp_path)
    assert not judged(out).findings


def test_the_factors_are_those_of_get_scale():
    found = rules(FIXTURES / "minilm-rslora")["one-alpha"]
    assert "18 of 18 modules get 0.25 times their strength" in found.why  # 16/16 for 16/sqrt(16)


def test_an_alpha_of_0_is_scale_1(tmp_path):
    folder = craft(tmp_path / "bad", lora_alpha=0)
    assert judged(folder).verdict == Verdict.WRONG  # peft adds nothing, llama.cpp all of it


def test_an_adapters_name_is_mended(tmp_path):
    folder = craft(tmp_path / "bad", change=renamed(".weight", ".default.weight"))
    assert judged(folder).verdict == Verdict.REFUSED
    assert not judged(fixed(rules(folder)["keys"].fix, tmp_path)).findings
