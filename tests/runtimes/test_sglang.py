"""Each rule of SGLang, with an adapter that breaks it and with one that keeps it."""

from dataclasses import replace

import pytest
import torch
from conftest import real
from runtimes.craft import craft, fixed, pair

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.sglang import SGLANG

L0 = "base_model.model.model.layers.0.self_attn"
BIAS = {f"{L0}.q_proj.lora_B.bias": torch.ones(8)}
SOUND = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8}


def made(*key_prefixes, rank=4, **more):
    return lambda _: (
        {k: t for key_prefix in key_prefixes for k, t in pair(key_prefix, rank).items()} | more
    )


def adapter(folder, **how):
    sound = {"change": made(f"{L0}.q_proj", f"{L0}.v_proj"), **SOUND}
    return craft(folder, **(sound | how))


def judged(folder):
    return runtimes.judge(runtimes.subject(folder), SGLANG)


def test_a_plain_adapter_loads(tmp_path):
    assert not judged(adapter(tmp_path / "good")).findings


CASES = {
    "fields": ({"lora_alpha": ...}, Verdict.REFUSED),
    "types": ({"lora_alpha": "8"}, Verdict.REFUSED),
    "others": (
        {"change": made(f"{L0}.q_proj", f"{L0}.v_proj", **BIAS)},
        Verdict.WRONG,
    ),
    "kind": ({"peft_type": "LOHA"}, Verdict.REFUSED),
    "regex": ({"target_modules": r".*\.(q|v)_proj"}, Verdict.REFUSED),
    "dora": ({"use_dora": True}, Verdict.REFUSED),
    "mixed-ranks": (
        {
            "change": lambda _: {**pair(f"{L0}.q_proj", 2), **pair(f"{L0}.v_proj", 4)},
            "rank_pattern": {"q_proj": 2},
        },
        Verdict.REFUSED,
    ),
    "query-alone": ({"change": made(f"{L0}.q_proj")}, Verdict.REFUSED),
    "no-factors": (
        {"change": lambda _: {"layers.0.x.lora_down.weight": torch.ones(4, 3)}},
        Verdict.NO_EFFECT,
    ),
    "one-scale": ({"alpha_pattern": {"q_proj": 2}}, Verdict.WRONG),
    "ignored": (
        {
            "change": made(
                f"{L0}.q_proj",
                f"{L0}.v_proj",
                **{"base_model.model.score.weight": torch.ones(2, 2)},
            ),
            "modules_to_save": ["score"],
        },
        Verdict.WRONG,
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_broken(rule, tmp_path):
    how, verdict = CASES[rule]
    judgement = judged(adapter(tmp_path / "bad", **how))
    assert judgement.verdict == verdict
    assert rule in {found.rule for found in judgement.findings}


def test_rslora_is_not_read(tmp_path):
    (found,) = judged(adapter(tmp_path / "bad", use_rslora=True)).findings
    assert (found.rule, found.verdict) == ("one-scale", Verdict.WRONG)
    assert "2 of 2 modules get 0.5 times their strength" in found.why


def test_layers_elsewhere_do_nothing(tmp_path):
    folder = adapter(tmp_path / "bad", change=made("base_model.model.transformer.h.0.attn"))
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict) == ("ignored", Verdict.NO_EFFECT)


@pytest.mark.parametrize("name", ["all", "all-linear"])
def test_the_words_for_all_are_understood(name, tmp_path):
    assert not judged(adapter(tmp_path / "good", target_modules=name)).findings


def test_added_tokens_are_refused(tmp_path):
    folder = adapter(tmp_path / "bad")
    (folder / "added_tokens.json").write_text('{"<new>": 32000}')
    (found,) = judged(folder).findings
    assert (found.rule, found.verdict) == ("added-tokens", Verdict.REFUSED)


def test_without_configuration_or_tensors(tmp_path):
    folder = adapter(tmp_path / "bad")
    (folder / "adapter_config.json").unlink()
    assert [found.rule for found in judged(folder).findings] == ["config"]


@pytest.mark.parametrize("rule", ["regex", "mixed-ranks", "one-scale"])
def test_what_mends_it_mends_it(rule, tmp_path):
    folder = adapter(tmp_path / "bad", **CASES[rule][0])
    found = next(found for found in judged(folder).findings if found.rule == rule)
    assert not judged(fixed(found.fix, tmp_path)).findings


def test_an_adapter_of_gpt_neo_has_no_layers_that_it_knows():
    assert judged(real("peft-gptneo125m-movies")).verdict == Verdict.NO_EFFECT


def test_without_tensors_in_the_folder(tmp_path):
    sound = runtimes.subject(adapter(tmp_path / "good"))
    (found,) = runtimes.judge(replace(sound, files=("adapter_config.json",)), SGLANG).findings
    assert (found.rule, found.verdict) == ("tensor-file", Verdict.REFUSED)
