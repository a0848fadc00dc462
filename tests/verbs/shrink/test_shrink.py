"""Policies, bounds and options of shrink, judged by dense float64 updates."""

import json
from pathlib import Path

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file

from lora_tools import (
    VLLM,
    Energy,
    Fixed,
    MaxBytes,
    MaxError,
    MaxParams,
    RewriteOptions,
    Serial,
    Threads,
    read,
    shrink,
    staged,
    survey,
    write,
)
from lora_tools.adapter import REPORT
from lora_tools.errors import BoundError, NonFiniteError, PolicyError, UnsupportedError

FIXTURES = Path(__file__).parents[3] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"
RSLORA = FIXTURES / "minilm-rslora"


def save(
    source: Path, out: Path, policy, options: RewriteOptions | None = None, executor=None
) -> dict:
    """Shrink to disk as the command does and return the report."""
    adapter = read(source)
    result = shrink(adapter, policy, options, executor)
    report = result.report("shrink", str(policy))
    with staged(out, force=True) as folder:
        write(folder, result.manifest, report.watch(result), like=adapter)
        report.save(folder / REPORT)
    return json.loads((out / REPORT).read_text())


def changed(source: Path, target: Path, change) -> Path:
    """Copy an adapter with its tensors and configuration changed in place."""
    tensors, config = reference.load(source)
    change(tensors, config)
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    "policy", [Fixed(3), Energy(0.9), MaxError(0.2), MaxParams(40_000), MaxBytes(200_000)], ids=str
)
def test_reported_errors_are_those_of_dense_float64(made, policy, tmp_path):
    if isinstance(policy, MaxParams | MaxBytes):  # as a share, so that every fixture can pay it
        adapter = read(made)
        fixed = sum(extra.spec.numel for extra in adapter.manifest.extras)
        share = fixed + int(0.7 * (adapter.params - fixed))
        policy = MaxParams(share) if isinstance(policy, MaxParams) else MaxBytes(8 * share)
    report = save(made, tmp_path / "out", policy)
    before, after = reference.deltas(made), reference.deltas(tmp_path / "out")
    measured = reference.relative_error(before, after)
    bias = "lorabias" in made.name  # counted by the report, not by the reference
    assert report["totals"]["error"] == pytest.approx(
        measured, rel=0.05 if bias else 1e-6, abs=3e-8
    )
    for row, stem in zip(report["modules"], before, strict=True):
        whole = float(before[stem].square().sum())
        rank = row["rank_after"] // (2 if stem.endswith("grouped") else 1)
        best = (reference.tail(before[stem], rank) / whole) ** 0.5
        assert row["optimal_error"] == pytest.approx(best, rel=1e-5, abs=1e-7)
        assert row["energy"] == pytest.approx(1 - best**2, abs=1e-7)


def test_an_error_bound_beats_every_uniform_rank(tmp_path):
    source = FIXTURES / "minilm-fp16-r32"
    bounded = save(source, tmp_path / "bounded", MaxError(0.05))
    measured = reference.relative_error(
        reference.deltas(source), reference.deltas(tmp_path / "bounded")
    )
    assert measured <= 0.05
    for rank in range(1, 33):
        uniform = save(source, tmp_path / "uniform", Fixed(rank))
        if uniform["totals"]["error"] <= 0.05:
            break
    assert bounded["totals"]["params_after"] < uniform["totals"]["params_after"]


@pytest.mark.parametrize("bound", [0.5, 0.1, 0.02, 0.004, 0.003])
@pytest.mark.parametrize("per_module", [False, True])
def test_error_bounds_hold_after_rounding_to_bfloat16(bound, per_module, tmp_path):
    report = save(RSLORA, tmp_path / "out", MaxError(bound, per_module=per_module))
    before, after = reference.deltas(RSLORA), reference.deltas(tmp_path / "out")
    assert reference.relative_error(before, after) <= bound
    if per_module:
        assert max(row["error"] for row in report["modules"]) <= bound


def test_a_bound_below_what_the_type_can_hold_is_refused():
    with pytest.raises(BoundError, match="rounding"):
        shrink(read(PLAIN), MaxError(1e-3), RewriteOptions(dtype="BF16"))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.93])
def test_a_size_is_the_size_of_the_file(made, share, tmp_path):
    size = int(share * read(made).nbytes)
    try:
        save(made, tmp_path / "out", MaxBytes(size))
    except BoundError:
        smallest = save(made, tmp_path / "least", Fixed(2 if "conv" in made.name else 1))
        assert smallest["totals"]["bytes_after"] > size
        return
    file = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert file <= size
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["totals"]["bytes_after"] == file
    if any(row["rank_after"] < row["rank_before"] for row in report["modules"]):
        # One more unit of rank anywhere would not fit.
        steps: dict[str, int] = {}
        for module, row in zip(read(made).manifest.modules, report["modules"], strict=True):
            if row["rank_after"] < row["rank_before"]:
                width = module.parts["b"].spec.nbytes // module.parts["b"].spec.numel
                step = module.cost * module.groups * width
                steps[module.owner] = steps.get(module.owner, 0) + step
        assert size - file < min(steps.values()) + 64  # the header grows by some digits


def test_engines_and_orders_agree_byte_for_byte(made, tmp_path):
    policy = Fixed(2)
    save(made, tmp_path / "serial", policy, executor=Serial())
    save(made, tmp_path / "threads", policy, executor=Threads(3))
    name = "adapter_model.safetensors"
    assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()


def test_limits_multiples_and_patterns():
    options = RewriteOptions(
        min_rank=2,
        max_rank=12,
        multiple_of=4,
        module_ranks=(("query", 5), ("layer.0.attention.self.query", 7)),
        exclude=("layer.5.*",),
    )
    rows = {change.row.module: change.row for change in shrink(read(PLAIN), Energy(0.5), options)}
    for name, row in rows.items():
        if "layer.5." in name:
            assert row.rank_after == 16
            assert row.error <= 1e-7
        elif name.endswith("query"):
            assert row.rank_after == (7 if "layer.0." in name else 5)
        else:
            assert row.rank_after in (4, 8, 12)


def test_only_included_modules_are_shrunk():
    rows = [c.row for c in shrink(read(PLAIN), Fixed(3), RewriteOptions(include=("value",)))]
    assert {row.rank_after for row in rows if row.module.endswith("value")} == {3}
    assert {row.rank_after for row in rows if row.module.endswith("query")} == {16}


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(PolicyError, match="no module matches nosuch"):
        survey(read(PLAIN), RewriteOptions(exclude=("nosuch",)))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_dtypes_are_those_asked_for(dtype, tmp_path):
    report = save(RSLORA, tmp_path / "out", Fixed(4), RewriteOptions(dtype=dtype))
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    wanted = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert {tensor.dtype for tensor in tensors.values()} == {wanted}
    gap = report["totals"]["error"] - report["totals"]["optimal_error"]
    assert gap <= {"F32": 1e-9, "F16": 1e-6, "BF16": 1e-4}[dtype]


def test_full_rank_in_half_precision_keeps_every_bit_under_a_power_of_two(tmp_path):
    source = FIXTURES / "minilm-fp16-r32"  # alpha / r is 2
    report = save(source, tmp_path / "out", Fixed(32))
    before, after = reference.load(source)[0], reference.load(tmp_path / "out")[0]
    assert report["totals"]["error"] == 0
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor * 2 if "lora_B" in key else tensor)


def test_other_tensors_are_carried_byte_for_byte(made, tmp_path):
    report = save(made, tmp_path / "out", Fixed(2))
    before, after = reference.load(made)[0], reference.load(tmp_path / "out")[0]
    assert before.keys() == after.keys()
    for key in before:
        if "lora_" not in key or "magnitude" in key:
            assert torch.equal(before[key], after[key])
            assert key in report["carried"] or "magnitude" in key


def test_an_update_of_zero_keeps_rank_one_and_is_listed(tmp_path):
    def silence(tensors, config):
        for key in tensors:
            if ".layer.2." in key and "lora_B" in key:
                tensors[key].zero_()

    source = changed(PLAIN, tmp_path / "in", silence)
    report = save(source, tmp_path / "out", Fixed(8))
    zeros = [row["module"] for row in report["modules"] if row["rank_after"] == 1]
    assert zeros == [row["module"] for row in report["modules"] if row["outcome"] == "zero"]
    assert all(".layer.2." in f".{name}" for name in zeros)
    assert len(zeros) == 2
    assert (
        max(reference.deltas(tmp_path / "out")[f"base_model.model.{zeros[0]}"].abs().ravel()) == 0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_by_the_tensors_name(bad, tmp_path):
    key = "base_model.model.encoder.layer.3.attention.self.value.lora_A.weight"

    def spoil(tensors, config):
        tensors[key][3, 5] = bad

    source = changed(PLAIN, tmp_path / "in", spoil)
    with pytest.raises(NonFiniteError, match=key):
        survey(read(source))


def test_numbers_that_cannot_be_squared_are_not_called_infinite(tmp_path):
    def grow(tensors, config):
        for key in tensors:
            tensors[key] = tensors[key].double() * 1e160

    source = changed(PLAIN, tmp_path / "in", grow)
    with pytest.raises(NonFiniteError, match="too large to be squared"):
        survey(read(source))


def test_vllm_gets_one_rank_and_no_patterns(tmp_path):
    report = save(PLAIN, tmp_path / "out", Energy(0.8), RewriteOptions(runtime=VLLM))
    tensors, config = reference.load(tmp_path / "out")
    ranks = {t.shape[0] for key, t in tensors.items() if "lora_A" in key}
    assert ranks == {config["r"]} == {config["lora_alpha"]}
    assert config["r"] in VLLM.ranks
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    assert isinstance(config["target_modules"], list)
    measured = reference.relative_error(reference.deltas(PLAIN), reference.deltas(tmp_path / "out"))
    assert report["totals"]["error"] == pytest.approx(measured, rel=1e-6)


def test_vllm_pads_with_zeros(tmp_path):
    save(PLAIN, tmp_path / "out", Fixed(5), RewriteOptions(runtime=VLLM))
    tensors, config = reference.load(tmp_path / "out")
    assert config["r"] == 8
    for key, tensor in tensors.items():
        rows = tensor if "lora_A" in key else tensor.mT
        assert rows.shape[0] == 8
        assert not rows[5:].any()
        assert rows[:5].any(1).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("minilm-dora", "DoRA magnitude"),
        ("minilm-bias", "modules_to_save"),
        ("minilm-lorabias", "bias"),
        ("minilm-tokens", "trainable tokens"),
    ],
)
def test_vllm_refuses_by_name_what_it_would_refuse(name, kind):
    with pytest.raises(UnsupportedError, match=kind):
        shrink(read(FIXTURES / name), Fixed(4), RewriteOptions(runtime=VLLM))


def test_the_table_of_ranks_is_what_those_ranks_cost(tmp_path):
    found = survey(read(PLAIN))
    for uniform in found.table():
        report = save(PLAIN, tmp_path / "out", Fixed(uniform.rank_after))
        assert report["totals"]["bytes_after"] == uniform.bytes_after
        assert report["totals"]["optimal_error"] == pytest.approx(uniform.optimal_error, abs=1e-12)


def test_a_regex_of_targets_becomes_a_list(tmp_path):
    def rewrite(tensors, config):
        config["target_modules"] = r".*\.(query|value)"
        config["init_lora_weights"] = "orthogonal"

    source = changed(PLAIN, tmp_path / "in", rewrite)
    save(source, tmp_path / "out", Fixed(3))
    config = reference.load(tmp_path / "out")[1]
    assert config["target_modules"] == list(read(PLAIN))
    assert config["init_lora_weights"] is True  # orthogonal refuses odd ranks when it is loaded


def test_unknown_settings_are_kept(tmp_path):
    def rewrite(tensors, config):
        config["my_own_note"] = {"kept": [1, 2]}
        config["lora_dropout"] = 0.25

    source = changed(PLAIN, tmp_path / "in", rewrite)
    save(source, tmp_path / "out", Fixed(3))
    config = reference.load(tmp_path / "out")[1]
    assert config["my_own_note"] == {"kept": [1, 2]}
    assert config["lora_dropout"] == 0.25
