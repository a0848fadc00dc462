"""Merges against whole models in float64, and against the real peft."""

import json
import warnings
from pathlib import Path

import dense
import judge
import pytest
import reference
import torch
from bases import BASES
from conftest import FIXTURES, MADE, REAL_PEFT, real
from safetensors.torch import save_file

from lora_tools import Threads, read
from lora_tools.model import open_model
from lora_tools.verbs.merge import Merged, MergeOptions, WeightedAdapter, merge, plan

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
ALIKE = ("minilm-bin", "minilm-rslora", "minilm-patterns")  # minilm-plain in other clothes
KINDS = [name for name in MADE if name != "minilm-fp16-r32"]  # of a kind with minilm-plain


def run(base: Path, adapters, out: Path, *, most=None, jobs=2, **options) -> Merged:
    strong = [
        each if isinstance(each, WeightedAdapter) else WeightedAdapter(read(each))
        for each in adapters
    ]
    made = merge(plan(open_model(base), strong, MergeOptions(**options)), most=most)
    return made.write(out, Threads(jobs))


def wrong(got: dict, wanted: dict, dtype: torch.dtype) -> float:
    """Return the share of elements that are not the correctly rounded ones."""
    bad = total = 0
    for key, wide in wanted.items():
        if got[key].is_floating_point():
            bad += int((got[key] != dense.rounded(wide, dtype)).sum())
            total += wide.numel()
    return bad / total


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param(name, code, marks=[pytest.mark.slow] if name in ALIKE else [])
        for name in KINDS
        for code in DTYPES
    ],
)
def test_every_element_is_the_rounded_sum(name, code, tmp_path):
    folder, state = FIXTURES / name, dense.state_of(BASES[name]())
    base = dense.save_base(tmp_path / "base", state, DTYPES[code])
    report = run(base, [folder], tmp_path / "out", allow_missing=name == "conv-mixed")
    got, before = dense.load_model(tmp_path / "out"), dense.load_model(base)
    wanted = dense.merged(folder, before)
    assert got.keys() == wanted.keys()
    assert wrong(got, wanted, DTYPES[code]) <= 1e-4
    if code == "F32":
        for key, wide in wanted.items():
            assert torch.allclose(got[key].double(), wide, rtol=1e-6, atol=1e-30), key
    changed = {row.tensor for row in report.rows}
    assert {key for key in got if not torch.equal(got[key], before[key])} <= changed
    assert report.copied == len(got) - len(changed)
    _check_fidelity(report, got, before, wanted)


def _check_fidelity(report, got, before, wanted):
    for row in report.rows:
        if not row.norm:
            continue
        key = row.tensor
        delta, change = wanted[key] - before[key].double(), got[key].double() - before[key].double()
        assert row.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        error = float((change - delta).norm() / delta.norm())
        assert row.error == pytest.approx(error, rel=1e-3, abs=1e-7)
        moved = delta != 0
        lost = float((moved & (change == 0)).sum() / moved.sum())
        assert row.lost_to_rounding == pytest.approx(lost, abs=1e-4)


@pytest.mark.parametrize("name", REAL_PEFT)
@pytest.mark.parametrize("code", ["BF16", pytest.param("F16", marks=pytest.mark.slow)])
def test_real_adapters_on_random_bases_of_their_shapes(name, code, tmp_path):
    folder = real(name)
    tensors, config = reference.load(folder)
    stems = sorted({key.partition(".lora_")[0] for key in tensors})
    state = {}
    for stem in stems:
        b, a = tensors[f"{stem}.lora_B.weight"], tensors[f"{stem}.lora_A.weight"]
        weight = 0.05 * torch.randn(b.shape[0], a.shape[1])
        state[stem.removeprefix("base_model.model.") + ".weight"] = weight.to(DTYPES[code])
    base = dense.save_base(tmp_path / "base", state, DTYPES[code])
    run(base, [folder], tmp_path / "out")
    got, bad = dense.load_model(tmp_path / "out"), 0
    assert got.keys() == state.keys()
    for stem in stems:
        b, a = tensors[f"{stem}.lora_B.weight"], tensors[f"{stem}.lora_A.weight"]
        key = stem.removeprefix("base_model.model.") + ".weight"
        delta = config["lora_alpha"] / config["r"] * (b.double() @ a.double())
        bad += int((got[key] != dense.rounded(state[key].double() + delta, DTYPES[code])).sum())
    assert bad <= 1e-4 * sum(tensor.numel() for tensor in state.values())


# peft's own merge raises for grouped convolutions, and adds a multi-head attention's output
# projection twice; both have tests of their own.
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("conv-mixed", "mha")])
def test_the_real_peft_merges_the_same(name, tmp_path):
    folder = FIXTURES / name
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[name]()), torch.float32)
    run(base, [folder], tmp_path / "out")
    model = judge.load(BASES[name](), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.merge_and_unload().state_dict()
    for key, ours in dense.load_model(tmp_path / "out").items():
        if ours.is_floating_point():
            scale = float(theirs[key].abs().max())
            assert torch.allclose(ours, theirs[key], rtol=1e-6, atol=1e-6 * scale), key


@pytest.mark.parametrize("weight", [0.5, 2.0, -1.0])
def test_a_weight_multiplies_the_update(weight, tmp_path):
    folder = FIXTURES / "minilm-plain"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.bfloat16)
    run(base, [WeightedAdapter(read(folder), weight)], tmp_path / "out")
    wanted = dense.merged(folder, dense.load_model(base), weight)
    assert wrong(dense.load_model(tmp_path / "out"), wanted, torch.bfloat16) <= 1e-4


def test_dora_at_another_strength_is_what_peft_computes(tmp_path):
    folder = FIXTURES / "minilm-dora"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.float32)
    run(base, [WeightedAdapter(read(folder), 0.5)], tmp_path / "out")
    model = judge.load(BASES[folder.name](), folder)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    theirs = model.merge_and_unload().state_dict()
    for key, ours in dense.load_model(tmp_path / "out").items():
        assert torch.allclose(ours, theirs[key], rtol=1e-5, atol=1e-6), key


def test_several_adapters_are_summed_before_the_one_rounding(tmp_path):
    names = ("minilm-plain", "minilm-patterns", "minilm-embedding")
    base = dense.save_base(
        tmp_path / "base", dense.state_of(BASES["minilm-plain"]()), torch.float16
    )
    weights = (0.7, -0.3, 1.0)
    strong = [WeightedAdapter(read(FIXTURES / n), w) for n, w in zip(names, weights, strict=True)]
    run(base, strong, tmp_path / "out")
    wanted = {key: tensor.double() for key, tensor in dense.load_model(base).items()}
    for name, weight in zip(names, weights, strict=True):
        wanted = dense.merged(FIXTURES / name, wanted, weight)
    assert wrong(dense.load_model(tmp_path / "out"), wanted, torch.float16) <= 1e-4


def test_an_adapter_is_taken_out_again_up_to_two_roundings(tmp_path):
    folder = FIXTURES / "minilm-plain"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.bfloat16)
    run(base, [folder], tmp_path / "in")
    run(tmp_path / "in", [WeightedAdapter(read(folder), -1.0)], tmp_path / "out")
    before, inside, after = (dense.load_model(tmp_path / n) for n in ("base", "in", "out"))
    for key, tensor in before.items():
        if not torch.equal(tensor, inside[key]):
            high = torch.maximum(tensor.double().abs(), inside[key].double().abs())
            assert bool(((after[key].double() - tensor.double()).abs() <= high * 2**-7).all())


def test_threads_shards_and_order_do_not_change_a_byte(tmp_path):
    folder = FIXTURES / "minilm-embedding"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.bfloat16)
    run(base, [folder], tmp_path / "one", jobs=1)
    run(base, [folder], tmp_path / "two", jobs=4)
    run(base, [folder], tmp_path / "small", most=5_000_000)
    for file in (tmp_path / "one").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    one, small = dense.load_model(tmp_path / "one"), dense.load_model(tmp_path / "small")
    assert one.keys() == small.keys()
    assert all(torch.equal(one[key], small[key]) for key in one)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    assert len(set(index["weight_map"].values())) > 5
    embedding = one["embeddings.word_embeddings.weight"].nbytes
    sizes = [file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors")]
    assert sum(size > 5_000_000 + 100_000 for size in sizes) == (embedding > 5_000_000)


def test_a_layout_without_changes_is_the_bases_byte_for_byte(tmp_path):
    folder = FIXTURES / "minilm-plain"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.bfloat16)
    run(base, [WeightedAdapter(read(folder), 0.0)], tmp_path / "out")
    for file in base.iterdir():
        if file.suffix in (".safetensors", ".json") and "index" not in file.name:
            assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


def test_another_type_is_rounded_to_once(tmp_path):
    folder = FIXTURES / "minilm-plain"
    state = dense.state_of(BASES[folder.name]())
    base = dense.save_base(tmp_path / "base", state, torch.bfloat16, torch_dtype="bfloat16")
    run(base, [folder], tmp_path / "out", dtype="F32")
    got, wanted = dense.load_model(tmp_path / "out"), dense.merged(folder, dense.load_model(base))
    for key, wide in wanted.items():
        assert torch.equal(got[key], wide.float()), key
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_lossy_merge_is_warned_of(tmp_path):
    folder = FIXTURES / "minilm-plain"
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[folder.name]()), torch.bfloat16)
    loud = run(base, [WeightedAdapter(read(folder), 0.01)], tmp_path / "tiny")
    assert loud.warning
    assert "--dtype float32" in loud.warning
    assert loud.lost > 0.5
    assert run(base, [WeightedAdapter(read(folder), 5.0)], tmp_path / "large").warning is None


def test_an_extracted_adapter_brings_its_fine_tune_back(tmp_path):
    """merge(svd(W1 - W0)) is W1 within the error that the truncation is known to have."""
    before = {f"l.{i}.q_proj.weight": torch.randn(64, 48) for i in range(3)}
    tuned = {key: w + 0.1 * torch.randn(64, 6) @ torch.randn(6, 48) for key, w in before.items()}
    tuned = {key: w + 0.001 * torch.randn_like(w) for key, w in tuned.items()}
    factors, lost = {}, {}
    for key, weight in before.items():
        u, s, vt = torch.linalg.svd((tuned[key] - weight).double(), full_matrices=False)
        stem = "base_model.model." + key.removesuffix(".weight")
        factors[f"{stem}.lora_B.weight"] = (u[:, :6] * s[:6]).float().contiguous()
        factors[f"{stem}.lora_A.weight"] = vt[:6].float().contiguous()
        lost[key] = float(s[6:].norm())
    (tmp_path / "adapter").mkdir()
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 6, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    base = dense.save_base(tmp_path / "base", before, torch.float32)
    run(base, [tmp_path / "adapter"], tmp_path / "out")
    for key, weight in dense.load_model(tmp_path / "out").items():
        assert float((weight - tuned[key]).double().norm()) == pytest.approx(lost[key], rel=1e-3)
