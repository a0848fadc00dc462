"""Each rule of vLLM, with an adapter that breaks it and with one that keeps it."""

import json

import pytest
import torch
from conftest import FIXTURES
from runtimes.craft import craft, fixed, renamed

from lora_tools import VLLM, RewriteOptions, runtimes
from lora_tools.runtimes import Verdict, named

PLAIN = FIXTURES / "minilm-plain"
Q0 = "encoder.layer.0.attention.self.query"


def judged(folder, name="vllm", **options):
    (runtime,) = named([name], **options)
    return runtimes.judge(runtimes.subject(folder), runtime)


def finding(folder, rule, name="vllm", **options):
    return next(f for f in judged(folder, name, **options).findings if f.rule == rule)


def test_a_plain_adapter_loads():
    assert judged(PLAIN).verdict == Verdict.LOADS
    assert not judged(PLAIN).findings


REFUSED = {
    "rank-zero": {"r": 0},
    "types": {"r": "16"},
    "pattern-zero": {"rank_pattern": {"nowhere": 0}},
    "expression": {"alpha_pattern": {"(": 4}},
    "modules-to-save": {"modules_to_save": ["lm_head"]},
    "dora": {"use_dora": True},
    "lora-bias": {"lora_bias": True},
    "bias": {"bias": "all"},
    "initialiser": {"init_lora_weights": "pissa_niter_4"},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "layer-replication": {"layer_replication": [[0, 4], [2, 5]]},
    "bdlora": {"use_bdlora": {"nblocks": 2}},
    "qalora": {"use_qalora": True},
    "fields": {"target_modules": ...},
    "tensor-file": {"file": "lora.safetensors"},
    "keys": {"change": renamed(".weight", ".default.weight")},
    "max-rank": {"r": 32, "rank_pattern": {".*": 16}},
}
KEPT = {
    "modules-to-save": {"modules_to_save": ["classifier"]},
    "bias": {"bias": "none"},
    "initialiser": {"init_lora_weights": "gaussian"},
    "pattern-zero": {"rank_pattern": {"nowhere": 1}},
    "expression": {"rank_pattern": {".*": 16, "(": 4}},
    "max-rank": {"rank_pattern": {"query": 16}},
    "keys": {
        "change": lambda t: {**t, "base_model.model.lm_head.base_layer.weight": torch.ones(2)}
    },
}


@pytest.mark.parametrize("rule", REFUSED)
def test_refused(rule, tmp_path):
    folder = craft(tmp_path / "bad", **REFUSED[rule])
    judgement = judged(folder)
    assert judgement.verdict == Verdict.REFUSED
    assert rule in {found.rule for found in judgement.findings}


@pytest.mark.parametrize("rule", KEPT)
def test_kept(rule, tmp_path):
    judgement = judged(craft(tmp_path / "good", **KEPT[rule]))
    assert judgement.verdict == Verdict.LOADS
    assert rule not in {found.rule for found in judgement.findings}


def test_without_configuration(tmp_path):
    folder = craft(tmp_path / "bad")
    (folder / "adapter_config.json").unlink()
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict) == ("config", Verdict.REFUSED)


@pytest.mark.parametrize("name", ["conv-mixed"])
def test_convolutions_are_refused(name):
    found = finding(FIXTURES / name, "matrices")
    assert found.verdict == Verdict.REFUSED
    assert set(found.where) == {"line", "plane", "point", "grouped", "space"}


@pytest.mark.parametrize("name", ["minilm-dora", "minilm-bias", "minilm-lorabias", "minilm-tokens"])
def test_what_shrink_refuses_for_vllm_is_refused(name):
    assert judged(FIXTURES / name).verdict == Verdict.REFUSED


def test_the_rank_that_a_server_takes_is_an_option():
    folder = FIXTURES / "minilm-fp16-r32"
    found = finding(folder, "max-rank")
    assert found.verdict == Verdict.REFUSED
    assert "rank 32 is above --max-lora-rank 16; `--max-lora-rank 32` would take it" in found.why
    assert len(found.where) == 12
    assert found.fix == f"lora-tools shrink {folder} OUT --rank 16 --for vllm"
    assert judged(folder, max_lora_rank=32).verdict == Verdict.LOADS


def test_a_larger_rank_of_a_pattern_slipped_through_before(tmp_path):
    def widened(tensors):
        return {
            k: torch.cat([v, v], 0 if "lora_A" in k else 1) if Q0 in k else v
            for k, v in tensors.items()
        }

    folder = craft(tmp_path / "bad", change=widened, rank_pattern={Q0: 32})
    assert finding(folder, "max-rank").where == (Q0,)
    old = finding(folder, "pattern-slips-through", "vllm@0.31.0")
    assert old.verdict == Verdict.REFUSED
    assert "r is 16, but 1 modules have ranks up to 32" in old.why


def test_one_scale_for_all_before_0_32():
    folder = FIXTURES / "minilm-patterns"
    assert judged(folder).verdict == Verdict.LOADS
    remark = finding(folder, "one-scale")
    assert remark.verdict == Verdict.LOADS
    assert remark.why.startswith("before vllm 0.32.0: loads at the wrong strength.")
    old = finding(folder, "one-scale", "vllm@0.31.0")
    assert judged(folder, "vllm@0.31.0").verdict == Verdict.WRONG
    assert "14 of 24 modules get 0.75 to 1.3333 times their strength" in old.why
    config = json.loads((folder / "adapter_config.json").read_text())
    assert f"{Q0}: {config['lora_alpha'] / config['r']:g} in place of {20 / 16:g}" in old.why


def test_rslora_is_one_scale_too():
    assert judged(FIXTURES / "minilm-rslora", "vllm@0.31.0").verdict == Verdict.LOADS


def test_rslora_was_not_read_for_experts_before_0_30(tmp_path):
    folder = craft(tmp_path / "bad", "moe-experts", use_rslora=True)
    assert judged(folder, "vllm@0.29.0").verdict == Verdict.WRONG
    assert finding(folder, "rslora-experts").verdict == Verdict.LOADS
    plain = judged(FIXTURES / "moe-experts", "vllm@0.29.0")
    assert "rslora-experts" not in {found.rule for found in plain.findings}


def test_stacked_experts_are_a_remark():
    found = finding(FIXTURES / "moe-experts", "stacked-experts")
    assert found.verdict == Verdict.LOADS
    assert "--enable-mixed-moe-lora-format" in found.why


def test_a_backbone_of_its_own_does_nothing(tmp_path):
    folder = craft(tmp_path / "bad", "moe-experts", change=renamed("model.model.", "model."))
    judgement = judged(folder)
    assert judgement.verdict == Verdict.NO_EFFECT
    assert finding(folder, "prefix").where[0].startswith("layers.0.")
    once = craft(
        tmp_path / "once", "moe-experts", change=renamed("model.model.layers.0.", "model.layers.0.")
    )
    assert judged(once).verdict == Verdict.WRONG
    whole = judged(FIXTURES / "moe-experts")
    assert whole.verdict == Verdict.LOADS


MENDED = {
    "max-rank": ("vllm", {"fixture": "minilm-fp16-r32"}),
    "one-scale": ("vllm@0.31.0", {"fixture": "minilm-patterns"}),
    "keys": ("vllm", {"change": renamed(".weight", ".default.weight")}),
    "rslora-experts": ("vllm@0.29.0", {"fixture": "moe-experts", "use_rslora": True}),
}


@pytest.mark.parametrize("rule", MENDED)
def test_what_mends_it_mends_it(rule, tmp_path):
    name, how = MENDED[rule]
    folder = craft(tmp_path / "bad", **how)
    out = fixed(finding(folder, rule, name).fix, tmp_path)
    judgement = judged(out, name)
    assert judgement.verdict == Verdict.LOADS
    assert {found.rule for found in judgement.findings} <= {"stacked-experts"}


def test_what_no_command_mends_has_none():
    assert finding(FIXTURES / "minilm-dora", "dora").fix is None
    assert finding(FIXTURES / "minilm-dora", "keys").fix is None


def test_shrink_asks_the_same_table():
    assert RewriteOptions(runtime=VLLM).runtime is runtimes.VLLM
    assert VLLM.ranks[:3] == (1, 8, 16)
    assert "DoRA magnitude" in VLLM.refuses
