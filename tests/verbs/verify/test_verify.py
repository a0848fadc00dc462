"""Verdicts on merges of ours, of PEFT, and on every way in which one may be wrong."""

import json
import warnings
from pathlib import Path

import dense
import judge
import pytest
import torch
from bases import BASES
from conftest import FIXTURES
from safetensors.torch import load_file, save_file

from lora_tools import Threads, read
from lora_tools.files.opening import open_partly
from lora_tools.model import open_model
from lora_tools.verbs.merge import merge
from lora_tools.verbs.verify import MergeOptions, Proof, WeightedAdapter, plan, verify

PLAIN = FIXTURES / "minilm-plain"
SITE = "encoder.layer.3.attention.self.query.weight"


def prove(merged: Path, base: Path, folder: Path = PLAIN, weight: float = 1.0) -> Proof:
    found, missing = open_partly(merged)
    allow = MergeOptions(allow_missing=folder.name == "conv-mixed")
    recipe = plan(open_model(base), [WeightedAdapter(read(folder), weight)], allow)
    return verify(found, recipe, Threads(2), missing)


def made(tmp_path: Path, dtype=torch.bfloat16, folder: Path = PLAIN, weight=1.0):
    state = dense.state_of(BASES[folder.name]())
    base = dense.save_base(tmp_path / "base", state, dtype)
    allow = MergeOptions(allow_missing=folder.name == "conv-mixed")
    recipe = plan(open_model(base), [WeightedAdapter(read(folder), weight)], allow)
    merge(recipe).write(tmp_path / "out")
    return base, tmp_path / "out"


def words(proof: Proof) -> dict[str, str]:
    return {verdict.tensor: verdict.outcome for verdict in proof.verdicts}


def edit(folder: Path, key: str, change) -> None:
    """Rewrite one tensor of a model folder."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if key in tensors:
            tensors[key] = change(tensors[key])
            save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "name", [name for name in BASES if name not in ("minilm-fp16-r32", "minilm-bin")]
)
def test_our_own_merges_are_exact(name, dtype, tmp_path):
    base, out = made(tmp_path, dtype, FIXTURES / name)
    proof = prove(out, base, FIXTURES / name)
    assert set(words(proof).values()) <= {"exact", "copied"}
    assert proof.passed


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merges_by_peft_pass_and_are_named(dtype, safe, tmp_path):
    state = dense.state_of(BASES["minilm-plain"]())
    base = dense.save_base(tmp_path / "base", state, dtype)
    model = judge.load(BASES["minilm-plain"]().to(dtype), PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.merge_and_unload(safe_merge=safe)
    dense.save_base(tmp_path / "theirs", dense.state_of(theirs), dtype)
    proof = prove(tmp_path / "theirs", base)
    assert proof.passed
    changed = [verdict for verdict in proof.verdicts if verdict.outcome != "copied"]
    assert len(changed) == 12
    if safe and dtype != torch.float32:
        assert {verdict.outcome for verdict in changed} == {"rounding"}
        assert all("as PEFT does" in verdict.reason for verdict in changed)
    else:  # in place, the sum of a narrow and a wide tensor is rounded once
        assert {verdict.outcome for verdict in changed} == {"exact"}


def test_peft_adds_the_output_of_a_multi_head_attention_twice(tmp_path):
    """A bug of peft 0.21.2 that a proof has to see; its forward pass adds it once."""
    folder = FIXTURES / "mha"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES["mha"]()), torch.float32)
    theirs = judge.load(BASES["mha"](), folder).merge_and_unload()
    dense.save_base(tmp_path / "theirs", dense.state_of(theirs), torch.float32)
    proof = prove(tmp_path / "theirs", base, folder)
    by_name = {verdict.tensor: verdict for verdict in proof.verdicts}
    assert by_name["attention.in_proj_weight"].outcome == "exact"
    twice = by_name["attention.out_proj.weight"]
    assert twice.outcome == "wrong strength"
    assert twice.strength == pytest.approx(2, rel=1e-4)


def test_a_layer_that_was_not_merged_is_found(tmp_path):
    base, out = made(tmp_path)
    before = dense.load_model(base)[SITE]
    edit(out, SITE, lambda _: before)
    proof = prove(out, base)
    assert not proof.passed
    assert [key for key, word in words(proof).items() if word == "not merged"] == [SITE]


@pytest.mark.parametrize("weight", [0.5, 1.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_wrong_strength_is_found_and_measured(weight, dtype, tmp_path):
    base, out = made(tmp_path, dtype, weight=weight)
    proof = prove(out, base)
    failed = [verdict for verdict in proof.verdicts if not verdict.passed]
    assert {verdict.outcome for verdict in failed} == {"wrong strength"}
    assert len(failed) == 12
    for verdict in failed:
        assert verdict.strength == pytest.approx(weight, rel=0.02)
        assert "instead of 2" in verdict.reason
    assert prove(out, base, weight=weight).passed


@pytest.mark.parametrize(
    "key", ["embeddings.LayerNorm.weight", "encoder.layer.0.output.dense.bias"]
)
def test_one_flipped_bit_in_an_untouched_tensor_is_found(key, tmp_path):
    base, out = made(tmp_path)

    def flip(tensor):
        tensor.view(torch.int16)[3] ^= 1
        return tensor

    edit(out, key, flip)
    proof = prove(out, base)
    assert [k for k, word in words(proof).items() if word == "untouched changed"] == [key]
    assert not proof.passed


def test_one_number_that_is_far_off_makes_a_tensor_different(tmp_path):
    base, out = made(tmp_path)

    def spoil(tensor):
        tensor[5, 7] += 0.25
        return tensor

    edit(out, SITE, spoil)
    assert words(prove(out, base))[SITE] == "different"
    edit(out, SITE, lambda tensor: tensor.fill_(float("nan")))
    assert words(prove(out, base))[SITE] == "different"
    edit(out, SITE, lambda tensor: torch.randn_like(tensor.float()).bfloat16())
    assert words(prove(out, base))[SITE] == "different"


def test_a_missing_tensor_and_a_missing_shard_are_found(tmp_path):
    base, out = made(tmp_path)
    gone = out / "model-00002-of-00002.safetensors"
    names = set(load_file(gone))
    gone.unlink()
    proof = prove(out, base)
    assert not proof.passed
    assert proof.missing_files == (gone.name,)
    assert {key for key, word in words(proof).items() if word == "missing"} == names


def test_another_shape_is_different(tmp_path):
    base, out = made(tmp_path)
    edit(out, SITE, lambda tensor: tensor[:8].clone())
    assert words(prove(out, base))[SITE] == "different"


def test_a_merge_stored_in_a_wider_type_is_compared_in_that_type(tmp_path):
    state = dense.state_of(BASES["minilm-plain"]())
    base = dense.save_base(tmp_path / "base", state, torch.bfloat16)
    strong = [WeightedAdapter(read(PLAIN))]
    merge(plan(open_model(base), strong, MergeOptions(dtype="F32"))).write(tmp_path / "out")
    assert set(words(prove(tmp_path / "out", base)).values()) == {"exact"}


def test_the_proof_is_data(tmp_path):
    base, out = made(tmp_path)
    proof = prove(out, base)
    data = json.loads(proof.to_json())
    assert data["schema"] == "lora-tools/verify/2"
    assert data["passed"] is True
    untouched = len(proof.verdicts) - 12
    assert data["totals"]["outcomes"] == {"copied": untouched, "exact": 12}
    assert "passed: " in proof.to_text()
