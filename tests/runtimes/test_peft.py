"""peft's verdicts are what the real peft does."""

import warnings
from pathlib import Path

import judge
import pytest
import torch
from conftest import FIXTURES, MADE, REAL_PEFT, real
from runtimes.craft import craft, fixed, renamed, without

from lora_tools import read, runtimes
from lora_tools.formats.registry import format_named
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.peft import PEFT

PREFIX = "base_model.model."
Q0 = "encoder.layer.0.attention.self.query"


def verdict(folder: Path) -> Verdict:
    return runtimes.judge(runtimes.subject(folder), PEFT).verdict


def rules(folder: Path) -> set[str]:
    return {found.rule for found in runtimes.judge(runtimes.subject(folder), PEFT).findings}


def really(folder: Path, fixture: str, meant: Path | None = None) -> Verdict:
    """Load an adapter with the real peft and compare what it adds with what is meant."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        try:
            model = PeftModel.from_pretrained(judge.base_of(FIXTURES / fixture), str(folder))
        except Exception:  # noqa: BLE001 whatever it raises
            return Verdict.REFUSED
    got = _weights(model)
    right = _weights(judge.load(judge.base_of(FIXTURES / fixture), meant or FIXTURES / fixture))
    if got.keys() == right.keys() and all(_alike(got[name], right[name]) for name in right):
        return Verdict.LOADS
    if all(not delta.any() for delta in got.values()):
        return Verdict.NO_EFFECT
    return Verdict.WRONG


def _weights(model) -> dict[str, torch.Tensor]:
    return judge.deltas(model) | {
        name: value.detach()
        for name, value in model.named_parameters()
        if any(mark in name for mark in ("magnitude", "modules_to_save", "trainable_tokens"))
    }


def _alike(x, y) -> bool:
    return x.shape == y.shape and torch.allclose(x.float(), y.float(), atol=1e-6)


def halved(tensors):
    return {k: v[:8] if "lora_A" in k else v[:, :8] for k, v in tensors.items()}


def mixed(tensors):
    return {k: (v[:8] if "lora_A" in k else v[:, :8]) if Q0 in k else v for k, v in tensors.items()}


BAD = {
    "rank zero": ("rank-zero", {"r": 0, "rank_pattern": {}}),
    "pattern of rank zero": ("rank-zero", {"rank_pattern": {Q0: 0}}),
    "bad pattern": ("expression", {"rank_pattern": {"(": 4}}),
    "bad alpha pattern": ("expression", {"alpha_pattern": {"*q": 4}}),
    "bad targets": ("expression", {"target_modules": "(query"}),
    "another rank": ("shapes", {"r": 8}),
    "tensors of another rank": ("shapes", {"change": halved}),
    "one of another rank": ("shapes", {"change": mixed}),
    "pattern of another rank": ("shapes", {"rank_pattern": {"query": 4}}),
    "rank in words": ("types", {"r": "16"}),
    "no rank": ("types", {"r": None}),
    "alpha in words": ("types", {"lora_alpha": "32"}),
    "pattern as a list": ("types", {"rank_pattern": [16]}),
    "pattern of words": ("types", {"rank_pattern": {"query": "16"}}),
    "targets as a number": ("types", {"target_modules": 3}),
    "layers in words": ("types", {"layers_to_transform": "0", "layers_pattern": "layer"}),
    "convolutions of another rank": ("shapes", {"fixture": "conv-mixed", "r": 8}),
    "attention of another rank": ("shapes", {"fixture": "mha", "r": 2}),
    "embedding of another rank": ("shapes", {"fixture": "minilm-embedding", "r": 8}),
    "patterns taken away": ("shapes", {"fixture": "minilm-patterns", "rank_pattern": {}}),
    "no kind": ("kind", {"peft_type": ...}),
    "other file": ("tensor-file", {"file": "adapter.safetensors"}),
    "saved but absent": ("modules-to-save", {"modules_to_save": ["pooler"]}),
    "tokens but absent": ("tokens", {"trainable_token_indices": [1, 2]}),
    "no prefix": ("prefix", {"change": renamed(PREFIX, "")}),
    "half a prefix": ("prefix", {"change": renamed(PREFIX, "base_model.")}),
    "prefix lost once": ("prefix", {"change": renamed(PREFIX + Q0, Q0)}),
    "compiled": ("wrapped", {"change": renamed(PREFIX, f"{PREFIX}_orig_mod.")}),
    "parallel": ("wrapped", {"change": renamed(PREFIX, f"{PREFIX}module.")}),
    "wrapped twice": ("wrapped", {"change": renamed(PREFIX, 2 * PREFIX)}),
    "a layer checkpointed": (
        "wrapped",
        {"change": renamed("layer.0.", "layer.0._checkpoint_wrapped_module.")},
    ),
    "adapter's name": ("adapter-name", {"change": renamed(".weight", ".mine.weight")}),
    "bad pattern, never reached": ("expression", {"rank_pattern": {".*": 16, "(": 4}}),
    "bad exclusion": ("expression", {"exclude_modules": "(query"}),
    "bad layers": ("expression", {"layers_to_transform": [1], "layers_pattern": ["("]}),
    "targets others": ("targets", {"target_modules": ["key"]}),
    "targets some": ("targets", {"target_modules": ["query"]}),
    "targets a layer": ("targets", {"layers_to_transform": [1], "layers_pattern": "layer"}),
    "excludes some": ("targets", {"exclude_modules": ["value"]}),
    "no B at all": ("no-b", {"change": without("lora_B")}),
    "no B once": ("no-b", {"change": without(Q0 + ".lora_B")}),
    "no A once": ("no-a", {"change": without(Q0 + ".lora_A")}),
    "no A at all": ("no-a", {"change": without("lora_A")}),
    "other names": ("no-factors", {"change": renamed(".lora_", ".lora_other_")}),
    "bias unannounced": ("lora-bias", {"fixture": "minilm-lorabias", "lora_bias": False}),
    "DoRA unannounced": ("magnitude", {"fixture": "minilm-dora", "use_dora": False}),
    "DoRA without magnitudes": (
        "magnitude",
        {"fixture": "minilm-dora", "change": without("magnitude")},
    ),
}
GOOD = {
    "as it is": {},
    "pattern that fits": {"r": 8, "lora_alpha": 32, "rank_pattern": {r".*": 16}},
    "first match wins": {"rank_pattern": {"self.query": 16, "query": 3}},
    "default's name": {"change": renamed(".weight", ".default.weight")},
    "targets layers": {"layers_to_transform": [0, 1, 2, 3, 4, 5], "layers_pattern": "layer"},
    "no version, no kind of task": {"peft_version": ..., "task_type": ...},
    "targets by expression": {"target_modules": r".*\.(query|value)"},
    "targets more": {"target_modules": ["query", "value", "nowhere"]},
    "saves nothing": {"modules_to_save": []},
    "unknown field": {"made_up": None},
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_fares_as_in_peft(case, tmp_path):
    rule, how = BAD[case]
    fixture = how.get("fixture", "minilm-plain")
    folder = craft(tmp_path / "bad", **how)
    assert rule in rules(folder)
    assert verdict(folder) == really(folder, fixture) != Verdict.LOADS


@pytest.mark.parametrize("case", GOOD)
def test_a_good_adapter_loads_as_in_peft(case, tmp_path):
    folder = craft(tmp_path / "good", **GOOD[case])
    assert verdict(folder) == really(folder, "minilm-plain") == Verdict.LOADS
    assert not rules(folder)


@pytest.mark.parametrize("name", MADE)
def test_every_fixture_loads_as_in_peft(name):
    assert verdict(FIXTURES / name) == really(FIXTURES / name, name) == Verdict.LOADS


def test_mixed_ranks_are_a_remark_about_hot_swapping():
    judgement = runtimes.judge(runtimes.subject(FIXTURES / "minilm-patterns"), PEFT)
    assert judgement.verdict == Verdict.LOADS
    (found,) = judgement.findings
    assert (found.rule, found.verdict) == ("hot-swap", Verdict.LOADS)
    assert "target_rank=16" in found.why


@pytest.mark.parametrize("name", REAL_PEFT)
def test_adapters_of_others_load_as_in_peft(name):
    folder = real(name)
    assert verdict(folder) == Verdict.LOADS
    judge.load(judge.base_of(folder), folder)


FIXABLE = ["no prefix", "prefix lost once", "adapter's name", "compiled", "parallel"]
FIXABLE += ["wrapped twice", "a layer checkpointed"]


@pytest.mark.parametrize("case", FIXABLE)
def test_what_fixes_it_fixes_it(case, tmp_path):
    folder = craft(tmp_path / "bad", **BAD[case][1])
    (found,) = runtimes.judge(runtimes.subject(folder), PEFT).findings
    out = fixed(found.fix, tmp_path)
    assert verdict(out) == really(out, "minilm-plain") == Verdict.LOADS


SAVED = {
    "no prefix": renamed(PREFIX, ""),
    "compiled": renamed(PREFIX, f"{PREFIX}_orig_mod."),
    "parallel": renamed(PREFIX, f"module.{PREFIX}"),
    "wrapped twice": renamed(PREFIX, 2 * PREFIX),
    "adapter's name": renamed("_delta", "_delta.default"),
}


@pytest.mark.parametrize("case", SAVED)
def test_what_is_saved_beside_the_modules_is_found_by_peft_or_it_is_fixed(case, tmp_path):
    folder = craft(tmp_path / "bad", fixture="minilm-tokens", change=SAVED[case])
    judgement = runtimes.judge(runtimes.subject(folder), PEFT)
    (found,) = [each for each in judgement.findings if each.rule == "saved-names"]
    assert judgement.verdict == really(folder, "minilm-tokens") == Verdict.REFUSED
    out = fixed(found.fix, tmp_path)
    assert verdict(out) == really(out, "minilm-tokens") == Verdict.LOADS


def test_a_whole_module_in_a_dump_of_the_state_is_named_for_peft(tmp_path):
    stored = f"{PREFIX}pooler.modules_to_save.default.dense"
    more = {f"{stored}.weight": torch.zeros(384, 384), f"{stored}.bias": torch.ones(384)}
    folder = craft(
        tmp_path / "bad", change=lambda tensors: tensors | more, modules_to_save=["pooler"]
    )
    assert "saved-names" in rules(folder)
    assert verdict(folder) == really(folder, "minilm-plain") == Verdict.REFUSED
    written = format_named("peft").write(read(folder).manifest)
    assert f"{PREFIX}pooler.dense.weight" in written.specs


def test_experts_in_the_order_of_unsloth_are_others_for_peft(tmp_path):
    fixture = read(FIXTURES / "moe-experts")
    counts = {m.key_prefix: (m.stack, m.rank) for m in fixture.manifest.modules if m.stack > 1}

    def grouped(tensors):
        for key, b in tensors.items():
            prefix, _, leaf = key.rpartition(".lora_B")
            if leaf and prefix in counts:
                experts, rank = counts[prefix]
                tensors[key] = b.reshape(len(b), rank, experts).mT.reshape(b.shape).contiguous()
        return tensors

    marked = {"lora_B_layout": "grouped_by_expert"}
    folder = craft(tmp_path / "bad", fixture="moe-experts", change=grouped, **marked)
    (found,) = [
        each
        for each in runtimes.judge(runtimes.subject(folder), PEFT).findings
        if each.rule == "experts-order"
    ]
    assert verdict(folder) == really(folder, "moe-experts") == Verdict.WRONG
    out = fixed(found.fix, tmp_path)
    assert verdict(out) == really(out, "moe-experts") == Verdict.LOADS


def test_other_methods_are_not_judged(tmp_path):
    folder = craft(tmp_path / "x", peft_type="IA3")
    (found,) = runtimes.judge(runtimes.subject(folder), PEFT).findings
    assert (found.rule, found.verdict) == ("method", Verdict.LOADS)


def test_without_configuration(tmp_path):
    folder = craft(tmp_path / "bad")
    (folder / "adapter_config.json").unlink()
    assert rules(folder) == {"config"}
    assert verdict(folder) == really(folder, "minilm-plain") == Verdict.REFUSED
