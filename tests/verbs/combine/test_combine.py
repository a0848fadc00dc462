"""Combinations against dense float64 sums of what the files hold, read without our own code."""

import json
import pickle
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import deltas, tail
from safetensors.torch import load_file, save_file

from lora_tools import read, staged, write
from lora_tools.adapter import REPORT
from lora_tools.errors import FormatError, NonFiniteError, PolicyError, UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Energy, Fixed, MaxBytes, MaxError, MaxParams
from lora_tools.rewrite import RewriteOptions
from lora_tools.rewrite.tasks import rewrite
from lora_tools.rules import parametrised, rule_named
from lora_tools.selection import Selection
from lora_tools.update import LowRank
from lora_tools.verbs.combine import (
    KEEP,
    ModuleWeight,
    Weights,
    average,
    combine,
    in_one_format,
    moving_average,
    sum_of,
)
from lora_tools.verbs.convert import convert

PREFIX = "base_model.model."
SHAPES = {"l.0.q_proj": (12, 10), "l.1.q_proj": (12, 10), "l.0.up": (16, 10), "l.1.up": (16, 10)}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def peft(folder, seed, paths=tuple(SHAPES), *, dtype=torch.float32, prefix="", **config):
    """Write an adapter as peft does, without any of our code."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    tensors = {}
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "up"],
    } | config
    for path in paths:
        (out, inp), r = SHAPES[path], config.get("rank_pattern", {}).get(path, config["r"])
        for name, shape in (("lora_A", (r, inp)), ("lora_B", (out, r))):
            tensor = torch.randn(shape, generator=generator).to(dtype)
            tensors[f"{PREFIX}{prefix}{path}.{name}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def combined(folders, out, weights=None, policy=None, options=KEEP, **more):
    """Combine to disk as the command does, and return the report."""
    adapters = [read(folder) for folder in folders]
    plan = combine(adapters, weights and Weights(weights), policy, options, **more)
    made = plan.report()
    with staged(out, force=True) as folder:
        rows = made.report.watch(plan)
        target = plan.source.format
        write(
            folder, plan.rewrite.manifest, rows, like=adapters[0], format=target, beside=plan.extras
        )
        made.save(folder / REPORT)
    return json.loads((out / REPORT).read_text())


def dense(folders, weights):
    """Return the dense float64 sum of adapters; a module that one lacks counts as zero."""
    total = {}
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in deltas(folder).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def error(wanted, found):
    assert wanted.keys() == found.keys()
    lost = sum(float((wanted[name] - found[name]).square().sum()) for name in wanted)
    return sqrt(lost / sum(float(delta.square().sum()) for delta in wanted.values()))


CONFIGS = st.fixed_dictionaries(
    {
        "r": st.integers(1, 4),
        "lora_alpha": st.sampled_from([1, 4, 7.3]),
        "use_rslora": st.booleans(),
        "rank_pattern": st.sampled_from([{}, {"l.0.up": 5}]),
        "alpha_pattern": st.sampled_from([{}, {"l.1.q_proj": 2.5}]),
        "dtype": st.sampled_from(list(DTYPES)),
        "paths": st.lists(st.sampled_from(list(SHAPES)), min_size=1, unique=True),
        "seed": st.integers(0, 3),
        "weight": st.sampled_from([1.0, 0.5, -1.0, 0.3]),
        "kohya": st.booleans(),
    }
)
SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(folder, config):
    """Write one of the adapters that Hypothesis thinks of, as PEFT's and perhaps as kohya's."""
    config = dict(config)
    weight, kohya = config.pop("weight"), config.pop("kohya")
    source = peft(
        folder,
        config.pop("seed"),
        tuple(config.pop("paths")),
        dtype=DTYPES[config.pop("dtype")],
        **config,
    )
    return source, weight, as_kohya(source) if kohya else source


def as_kohya(source):
    """Write an adapter as sd-scripts would: alphas in tensors, factors under other names."""
    plan = convert(read(source), format_named("kohya"))
    folder = source.with_name(f"{source.name}-kohya")
    folder.mkdir()
    updates = ((change.module, change.update) for change in plan)
    write(folder, plan.manifest, updates, like=plan.source.adapter, format=plan.source.format)
    return folder


@SLOW
@given(st.lists(CONFIGS, min_size=1, max_size=4))
def test_a_sum_is_that_of_dense_matrices(tmp_path_factory, configs):
    root = tmp_path_factory.mktemp("sum")
    made = [written(root / str(n), config) for n, config in enumerate(configs)]
    folders, weights, paths = zip(*made, strict=True)
    options = RewriteOptions(scale="keep", dtype="F32")
    report = combined(paths, root / "out", weights, options=options, format=format_named("peft"))
    wanted = dense(folders, weights)
    size = sum(
        abs(w) * sqrt(sum(float(d.square().sum()) for d in deltas(f).values()))
        for f, w in zip(folders, weights, strict=True)
    )
    found = deltas(root / "out")
    lost = sqrt(sum(float((wanted[name] - found[name]).square().sum()) for name in wanted))
    assert wanted.keys() == found.keys()
    assert lost <= 1e-6 * size
    for row in report["modules"]:
        s = torch.linalg.svdvals(wanted[PREFIX + row["module"]])
        left = s.square().flip(0).cumsum(0).flip(0).sqrt()
        rank = int((left > 4e-7 * left[0]).sum())  # what float32 cannot tell from its rounding
        assert row["rank_after"] <= max(rank, 1) or row["outcome"] == "kept"


@SLOW
@given(
    st.lists(CONFIGS, min_size=2, max_size=3),
    st.sampled_from([Fixed(2), Energy(0.7), MaxError(0.5), MaxParams(150)]),
)
def test_a_truncation_is_the_dense_optimum_whatever_the_order(tmp_path_factory, configs, policy):
    root = tmp_path_factory.mktemp("cut")
    made = [written(root / str(n), config) for n, config in enumerate(configs)]
    wanted = dense([source for source, *_ in made], [weight for _, weight, _ in made])
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    errors = []
    for n, order in enumerate(permutations(range(len(made)))):
        _, weights, paths = zip(*(made[i] for i in order), strict=True)
        out, options = root / f"out{n}", RewriteOptions(scale="keep", dtype="F32")
        report = combined(paths, out, weights, policy, options, format=format_named("peft"))
        found = deltas(out)
        assert wanted.keys() == found.keys()
        if whole < 1e-9:  # they cancel each other
            continue
        errors.append(report["totals"]["error"])
        assert report["totals"]["error"] == pytest.approx(error(wanted, found), rel=1e-4, abs=1e-6)
        best = sum(
            tail(wanted[PREFIX + row["module"]], row["rank_after"]) for row in report["modules"]
        )
        assert error(wanted, found) == pytest.approx(sqrt(best / whole), rel=1e-4, abs=2e-6)
    assert errors == pytest.approx(errors[:1] * len(errors), rel=1e-4, abs=2e-6)


def test_one_adapter_is_itself_bit_for_bit(made, tmp_path):
    report = combined([made], tmp_path / "out")
    assert report["totals"]["error"] == 0
    before, after = read(made), read(tmp_path / "out")
    assert before.tensors.specs == after.tensors.specs
    for key in before.tensors.specs:
        assert np.array_equal(*(np.asarray(a.tensors[key].float()) for a in (before, after))), key
    assert [(m.name, m.alpha, m.rslora) for m in before.manifest.modules] == [
        (m.name, m.alpha, m.rslora) for m in after.manifest.modules
    ]
    if not before.config.get("rank_pattern"):  # which may be written in other words
        assert {**before.config} == {**after.config}


def test_weights_1_and_minus_1_of_one_adapter_leave_zero_and_it_is_said(tmp_path):
    source = FIXTURES / "minilm-plain"
    report = combined([source, source], tmp_path / "out", (1.0, -1.0))
    assert {row["outcome"] for row in report["modules"]} == {"zero"}
    assert report["totals"]["outcomes"] == {"zero": len(report["modules"])}
    assert any("cancel to zero" in line for line in report["conflicts"])
    assert not any(delta.any() for delta in deltas(tmp_path / "out").values())


def test_one_adapter_twice_keeps_its_bits(tmp_path):
    source = FIXTURES / "minilm-plain"
    combined([source, source], tmp_path / "out", (0.25, 0.75))
    before, after = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bits_are_kept_where_scales_are_equal(dtype, tmp_path):
    folders = [peft(tmp_path / str(n), n, dtype=DTYPES[dtype]) for n in range(2)]
    report = combined(folders, tmp_path / "out", (1.0, -1.0))
    assert report["totals"]["error"] == 0
    assert {row["outcome"] for row in report["modules"]} == {"stacked"}
    wanted = dense(folders, (1.0, -1.0))
    assert error(wanted, deltas(tmp_path / "out")) < 1e-15


def test_a_stored_type_rounds_and_the_error_is_that_of_the_bytes(tmp_path):
    folders = [peft(tmp_path / str(n), n, dtype=torch.bfloat16) for n in range(2)]
    report = combined(folders, tmp_path / "out", (0.7, 0.3))
    found = error(dense(folders, (0.7, 0.3)), deltas(tmp_path / "out"))
    assert 1e-4 < found < 4e-3
    assert report["totals"]["error"] == pytest.approx(found, rel=1e-6)
    plan = combine([read(folder) for folder in folders], Weights((0.7, 0.3)))
    made = plan.report()
    list(made.report.watch(plan))
    assert "--dtype float32" in made.summary()


def test_kohya_and_peft_are_added(tmp_path):
    """Names of one, fused and split layers of the other: what convert does, combine does."""
    unet = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    names = [f"{unet}.to_q", f"{unet}.to_k"]
    a = tmp_path / "a"
    a.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{PREFIX}{n}.lora_{f}.weight": torch.randn(s, generator=generator)
        for n in names
        for f, s in (("A", (4, 320)), ("B", (320, 4)))
    }
    save_file(tensors, a / "adapter_model.safetensors")
    (a / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k"]}
        )
    )
    kohya = {}
    for n in names:
        stem = "lora_unet_" + n.replace(".", "_")
        kohya |= {
            f"{stem}.lora_down.weight": torch.randn(2, 320, generator=generator),
            f"{stem}.lora_up.weight": torch.randn(320, 2, generator=generator),
            f"{stem}.alpha": torch.tensor(1.0),
        }
    save_file(kohya, tmp_path / "b.safetensors")
    combined([a, tmp_path / "b.safetensors"], tmp_path / "out", (1.0, 2.0))
    found = deltas(tmp_path / "out")
    first = deltas(a)
    for n in names:
        stem = "lora_unet_" + n.replace(".", "_")
        other = (
            kohya[f"{stem}.lora_up.weight"].double()
            @ kohya[f"{stem}.lora_down.weight"].double()
            / 2
        )
        torch.testing.assert_close(
            found[PREFIX + n], first[PREFIX + n] + 2 * other, rtol=1e-5, atol=1e-5
        )


def test_what_stands_before_names_is_brought_to_that_of_the_first(tmp_path):
    folders = [peft(tmp_path / "a", 0, prefix="model."), peft(tmp_path / "b", 1)]
    report = combined(folders, tmp_path / "out")
    assert all(row["module"].startswith("model.") for row in report["modules"])
    assert any("names begin with ''" in note for note in report["notes"])
    first, second = map(deltas, folders)
    for name, delta in deltas(tmp_path / "out").items():
        other = second[name.replace(f"{PREFIX}model.", PREFIX)]
        torch.testing.assert_close(delta, first[name] + other, rtol=1e-5, atol=1e-5)


def test_the_real_peft_loads_adapters_of_different_modules(tmp_path):
    """A configuration that targets one adapter's modules would leave the others' out."""
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    a = peft(
        tmp_path / "a",
        0,
        ("l.0.q_proj",),
        target_modules=["q_proj"],
        exclude_modules=["l.1.q_proj"],
    )
    b = peft(tmp_path / "b", 1, ("l.1.q_proj", "l.0.up"), r=2, lora_alpha=3, use_rslora=True)
    combined([a, b], tmp_path / "out", (1.0, -0.5))
    model = torch.nn.Module()
    model.l = torch.nn.ModuleList()
    for _ in range(2):
        layer = torch.nn.Module()
        layer.q_proj, layer.up = torch.nn.Linear(10, 12), torch.nn.Linear(10, 16)
        model.l.append(layer)
    model.config = {}
    config = PeftConfig.from_pretrained(str(tmp_path / "out"))
    loaded = get_peft_model(model, config)
    result = set_peft_model_state_dict(
        loaded, load_peft_weights(str(tmp_path / "out"), device="cpu")
    )
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    wanted = dense([a, b], (1.0, -0.5))
    for name, delta in wanted.items():
        layer = loaded.get_submodule(f"base_model.model.{name.removeprefix(PREFIX)}")
        torch.testing.assert_close(
            layer.get_delta_weight("default").double(), delta, rtol=1e-5, atol=1e-5
        )


def test_averages_of_checkpoints(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(5)]
    for name, weights in (("mean", average(5)), ("ema", moving_average(0.9, 5))):
        assert sum(weights) == pytest.approx(1)
        combined(folders, tmp_path / name, weights)
        assert error(dense(folders, weights), deltas(tmp_path / name)) < 1e-6
    running = deltas(folders[0])
    for folder in folders[1:]:
        running = {n: 0.9 * running[n] + 0.1 * d for n, d in deltas(folder).items()}
    assert error(running, deltas(tmp_path / "ema")) < 1e-6


def test_modules_have_weights_of_their_own(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    modules = (ModuleWeight("q_proj", 0.5), ModuleWeight("l.1.*", -2.0, adapter=2))
    plan = combine([read(folder) for folder in folders], Weights((1.0, 3.0), modules))
    found = {change.module: change.update for change in plan}
    for path in SHAPES:
        first = 0.5 if "q_proj" in path else 1.0
        second = -2.0 if path.startswith("l.1") else first
        wanted = (
            first * deltas(folders[0])[PREFIX + path]
            + 3 * second * deltas(folders[1])[PREFIX + path]
        )
        low = found[path]
        got = low.scale * torch.from_numpy(low.b).double() @ torch.from_numpy(low.a).double()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    adapter = read(peft(tmp_path / "a", 0))
    with pytest.raises(PolicyError, match="v_proj"):
        combine([adapter, adapter], Weights((1.0, 1.0), (ModuleWeight("v_proj", 2.0),)))
    with pytest.raises(PolicyError, match="no adapter number 3"):
        Weights((1.0, 1.0), (ModuleWeight("q_proj", 2.0, adapter=3),))
    with pytest.raises(PolicyError, match="1 weights for 2"):
        combine([adapter, adapter], Weights((1.0,)))


def test_a_weight_of_0_removes(tmp_path):
    folders = [peft(tmp_path / "a", 0, ("l.0.up",)), peft(tmp_path / "b", 1, ("l.0.q_proj",))]
    report = combined(folders, tmp_path / "out", (0.0, 1.0))
    assert [row["module"] for row in report["modules"]] == ["l.0.q_proj"]
    assert report["dropped"] == {"module of weight 0": ["l.0.up"]}
    with pytest.raises(UnsupportedError, match="every weight is 0"):
        combined(folders, tmp_path / "none", (0.0, 0.0))


def test_modules_that_are_removed_are_listed_with_their_share(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    sources = in_one_format([read(folder) for folder in folders])
    plan = sum_of(sources, selection=Selection(drop=("up",)))
    made = plan.report()
    list(made.report.watch(plan))
    wanted = dense(folders, (1.0, 1.0))
    whole = sqrt(sum(float(delta.square().sum()) for delta in wanted.values()))
    shares = made.to_dict()["removed"]
    assert shares.keys() == {"l.0.up", "l.1.up"}
    for name, share in shares.items():
        assert share == pytest.approx(float(wanted[PREFIX + name].norm()) / whole, rel=1e-6)
    assert "removed: l.[0..1].up" in made.summary()


def test_shapes_that_differ_are_refused_by_name(tmp_path):
    a, b = peft(tmp_path / "a", 0, ("l.0.up",)), peft(tmp_path / "b", 1, ("l.0.up",))
    tensors = load_file(b / "adapter_model.safetensors")
    tensors[f"{PREFIX}l.0.up.lora_A.weight"] = torch.randn(3, 11)
    save_file(tensors, b / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=r"l\.0\.up is linear 16×10 in .* and linear 16×11 in"):
        combined([a, b], tmp_path / "out")


def test_dora_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UnsupportedError, match="normalised after it is added"):
        combined([FIXTURES / "minilm-dora"] * 2, tmp_path / "out")
    with pytest.raises(UnsupportedError, match="normalised after it is added"):
        combined([FIXTURES / "minilm-dora"], tmp_path / "out", (0.5,))


def test_what_is_not_finite_is_refused_by_name(tmp_path):
    a, b = peft(tmp_path / "a", 0), peft(tmp_path / "b", 1)
    tensors = load_file(b / "adapter_model.safetensors")
    tensors[f"{PREFIX}l.0.up.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, b / "adapter_model.safetensors")
    with pytest.raises(NonFiniteError, match=r"b/adapter_model.*l\.0\.up\.lora_A"):
        combined([a, b], tmp_path / "out")


@pytest.mark.parametrize("policy", [MaxParams(500), MaxBytes(4000)], ids=str)
def test_budgets_are_kept(policy, tmp_path):
    folders = [peft(tmp_path / str(n), n, r=4) for n in range(3)]
    report = combined(folders, tmp_path / "out", policy=policy)
    params, nbytes = report["totals"]["params_after"], report["totals"]["bytes_after"]
    assert (params <= 500) if isinstance(policy, MaxParams) else (nbytes <= 4000)
    wanted = dense(folders, (1, 1, 1))
    assert report["totals"]["error"] == pytest.approx(
        error(wanted, deltas(tmp_path / "out")), rel=1e-5
    )


def test_the_report_says_where_adapters_fight(tmp_path):
    a = peft(tmp_path / "a", 0)
    b = tmp_path / "b"
    b.mkdir()
    tensors = load_file(a / "adapter_model.safetensors")
    other = load_file(peft(tmp_path / "c", 1) / "adapter_model.safetensors")
    mixed = {
        key: (-tensors[key] + 0.5 * other[key])
        if "q_proj.lora_B" in key
        else tensors[key]
        if "q_proj" in key
        else other[key]
        for key in tensors
    }
    save_file(mixed, b / "adapter_model.safetensors")
    (b / "adapter_config.json").write_text((a / "adapter_config.json").read_text())
    report = combined([a, b], tmp_path / "out")
    (line,) = [line for line in report["conflicts"] if "q_proj: cosine" in line]
    assert line.startswith("adapters 1 and 2 fight in l.[0..1].q_proj: cosine down to -0.")
    x, y = deltas(a), deltas(b)
    for row in report["contributions"]:
        p, q = x[PREFIX + row["module"]], y[PREFIX + row["module"]]
        assert row["norms"] == pytest.approx([float(p.norm()), float(q.norm())], rel=1e-6)
        assert row["norm"] == pytest.approx(float((p + q).norm()), rel=1e-6)
        (pair,) = row["adapter_pairs"]
        assert pair["cosine"] == pytest.approx(float((p * q).sum() / p.norm() / q.norm()), abs=1e-6)


def test_replacements_that_disagree_are_refused_by_name_and_agreeing_ones_are_kept(tmp_path):
    source = FIXTURES / "minilm-bias"
    report = combined([source, source], tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    kept = [key for key in before if "lora_" not in key]
    assert kept
    assert all(torch.equal(before[key], after[key]) for key in kept)
    assert report["carried"].keys() == set(kept)
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    save_file(before | {kept[0]: before[kept[0]] + 1}, other / "adapter_model.safetensors")
    with pytest.raises(UnsupportedError, match="is replaced by"):
        combined([source, other], tmp_path / "two")
    with pytest.raises(UnsupportedError, match="cannot take out"):
        combined([source, other], tmp_path / "two", (1.0, -1.0))


def test_a_replacement_that_the_first_configuration_does_not_name_is_refused(tmp_path):
    plain, biased = FIXTURES / "minilm-plain", FIXTURES / "minilm-bias"
    with pytest.raises(UnsupportedError, match="a loader would leave it out"):
        combined([plain, biased], tmp_path / "out")
    report = combined([biased, plain], tmp_path / "out")
    assert report["carried"]


def test_biases_of_b_add_up(tmp_path):
    source = FIXTURES / "minilm-lorabias"
    combined([source, source], tmp_path / "out", (2.0, -0.5))
    a, b = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    p, q = (json.loads((f / "adapter_config.json").read_text()) for f in (source, tmp_path / "out"))
    for key in (key for key in a if key.endswith("lora_B.bias")):
        before, after = (c["lora_alpha"] / c["r"] * t[key].double() for c, t in ((p, a), (q, b)))
        torch.testing.assert_close(after, 1.5 * before, rtol=1e-5, atol=1e-7)


def test_differences_of_biases_add_up(tmp_path):
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    files = []
    for n, dtype in enumerate((torch.float16, torch.float32)):
        torch.manual_seed(n)
        tensors = {
            f"{stem}.lora_down.weight": torch.randn(2, 6),
            f"{stem}.lora_up.weight": torch.randn(4, 2),
            f"{stem}.alpha": torch.tensor(2.0),
            f"{stem}.diff_b": torch.randn(4).to(dtype),
        }
        files.append(tmp_path / f"{n}.safetensors")
        save_file(tensors, files[-1])
    combined(files, tmp_path / "out", (2.0, -1.0))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    x, y = (load_file(each)[f"{stem}.diff_b"].double() for each in files)
    torch.testing.assert_close(load_file(file)[f"{stem}.diff_b"].double(), 2 * x - y)


def test_what_only_the_others_have_beside_their_updates_is_listed(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    (folders[1] / "notes.txt").write_text("how it was trained")
    report = combined(folders, tmp_path / "out")
    assert report["left_out"] == {
        f"{folders[1]}: {name}": "of another adapter than the first"
        for name in ("notes.txt", "adapter_config.json")
    }


def test_the_format_can_be_another(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    combined(folders, tmp_path / "out", format=format_named("kohya"))
    back = convert(read(next((tmp_path / "out").glob("*.safetensors"))), format_named("peft"))
    assert len(back) == len(SHAPES)


@pytest.mark.parametrize("method", ["ties", "dare", "knots", "tsv", "iso", "core-ties"])
def test_the_error_of_a_rule_is_against_its_exact_result(method, tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    folders.append(peft(tmp_path / "c", 2, ("l.0.up",)))
    rule = parametrised(rule_named(method), {})
    report = combined(folders, tmp_path / "out", policy=Fixed(3), rule=rule)
    found = deltas(tmp_path / "out")
    lost = whole = best = 0.0
    for row in report["modules"]:
        adapters = [read(f) for f in folders if row["module"] in read(f)]
        low = rule(
            [
                LowRank(*(t.double().numpy() for t in (u.a, u.b)), u.alpha)
                for u in (a[row["module"]] for a in adapters)
            ],
            [1.0] * len(adapters),
            row["module"],
        )
        exact = torch.from_numpy(low.scale * low.b @ low.a)
        lost += float((exact - found[PREFIX + row["module"]]).square().sum())
        whole += float(exact.square().sum())
        best += tail(exact, 3)
    assert report["totals"]["error"] == pytest.approx(sqrt(lost / whole), rel=1e-5)
    assert report["totals"]["error"] == pytest.approx(sqrt(best / whole), rel=1e-3, abs=1e-6)
    assert report["policy"].startswith(method)


def test_a_rule_of_full_rank_needs_a_policy_and_takes_no_bias(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(2)]
    with pytest.raises(PolicyError, match="full rank"):
        combined(folders, tmp_path / "out", rule=parametrised(rule_named("ties"), {}))
    rule = parametrised(rule_named("iso"), {})
    with pytest.raises(UnsupportedError, match="a bias of B"):
        combined([FIXTURES / "minilm-lorabias"] * 2, tmp_path / "out", rule=rule)
    with pytest.raises(UnsupportedError, match="DoRA"):
        combined([FIXTURES / "minilm-dora"], tmp_path / "out", rule=rule)


def test_jobs_are_addresses_and_the_same_is_done_anywhere(tmp_path):
    folders = [peft(tmp_path / str(n), n) for n in range(8)]
    for rule, policy in (
        (None, None),
        (None, Fixed(2)),
        (parametrised(rule_named("dare"), {}), Fixed(2)),
    ):
        plan = combine([read(folder) for folder in folders], average_of(8), policy, rule=rule)
        for change, job in zip(plan, plan.rewrite.jobs, strict=True):
            data = pickle.dumps(job)
            assert len(data) < 4096
            again = rewrite(pickle.loads(data))
            assert (again.update.b == change.update.b).all()
            assert (again.update.a == change.update.a).all()


def average_of(count):
    return Weights(average(count))


@pytest.mark.parametrize("target", ["kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize("first", [0, 1])
def test_one_model_under_two_namings_is_added(first, target, tmp_path):
    """kohya has UNets under the original names and under diffusers': the same weights."""
    block = "transformer_blocks_0_attn1_to"
    namings = (
        [f"lora_unet_input_blocks_4_1_{block}_q", f"lora_unet_middle_block_1_{block}_k"],
        [
            f"lora_unet_down_blocks_1_attentions_0_{block}_q",
            f"lora_unet_mid_block_attentions_0_{block}_k",
        ],
    )
    files, wanted = [], []
    for number, names in enumerate(namings):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, size in zip(names, (640, 1280), strict=True):
            up, down = (
                torch.randn(size, 2, generator=generator),
                torch.randn(2, size, generator=generator),
            )
            tensors |= {
                f"{name}.lora_up.weight": up,
                f"{name}.lora_down.weight": down,
                f"{name}.alpha": torch.tensor(2.0),
            }
        files.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, files[-1])
        wanted.append(
            [
                (
                    tensors[f"{n}.lora_up.weight"].double()
                    @ tensors[f"{n}.lora_down.weight"].double()
                )
                for n in names
            ]
        )
    order = (files[first], files[1 - first])
    combined(order, tmp_path / "out", format=format_named(target))
    adapter = read(tmp_path / "out")
    if target == "kohya":  # the names of the first file
        assert {m.key_prefix for m in adapter.manifest.modules} == {*namings[first]}
    found = [update.scale * update.b.double() @ update.a.double() for update in adapter.values()]
    sums = [first + second for first, second in zip(*wanted, strict=True)]
    found.sort(key=len)
    for delta, total in zip(found, sums, strict=True):
        torch.testing.assert_close(delta, total, rtol=1e-5, atol=1e-5)


def test_one_model_under_two_namings_is_added_where_a_format_has_none_of_its_own(tmp_path):
    """PEFT's modules have whatever names the model has that was trained: here, the first's."""
    path = "transformer_blocks.0.attn1.to_q"
    namings = (
        (f"input_blocks.4.1.{path}", f"input_blocks.8.1.{path}"),
        (f"down_blocks.1.attentions.0.{path}", f"down_blocks.2.attentions.1.{path}"),
    )
    folders = []
    for number, names in enumerate(namings):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {}
        for name, size in zip(names, (640, 1280), strict=True):
            tensors |= {
                f"{PREFIX}{name}.lora_A.weight": torch.randn(2, size),
                f"{PREFIX}{name}.lora_B.weight": torch.randn(size, 2),
            }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    combined(folders, tmp_path / "out")
    found, first, second = (deltas(f) for f in (tmp_path / "out", *folders))
    assert found.keys() == {f"{PREFIX}{name}" for name in namings[0]}
    for name, twin in zip(*namings, strict=True):
        total = first[f"{PREFIX}{name}"] + second[f"{PREFIX}{twin}"]
        torch.testing.assert_close(found[f"{PREFIX}{name}"], total, rtol=1e-5, atol=1e-5)
