"""Diff against dense float64 updates, made from the files without any of our code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file

from lora_tools import Fixed, LoraToolsError, Serial, Threads, read, shrink, staged, write
from lora_tools.errors import FormatError, NonFiniteError, PolicyError
from lora_tools.verbs.diff import DiffOptions, diff, text

FIXTURES = Path(__file__).parents[3] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"


def changed(source: Path, out: Path, change=None, **fields) -> Path:
    """Copy an adapter, its tensors as ``change`` returns them and its configuration with fields."""
    tensors, config = reference.load(source)
    out.mkdir()
    tensors = {key: value.clone() for key, value in tensors.items()}
    tensors = change(tensors) if change else tensors
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config | fields))
    return out


def each(tensors: dict, of: str, function) -> dict:
    return {key: function(key, t) if of in key else t for key, t in tensors.items()}


def truncated(source: Path, out: Path, rank: int) -> Path:
    adapter = read(source)
    small = shrink(adapter, Fixed(rank))
    with staged(out) as place:
        updates = ((change.module, change.update) for change in small)
        write(place, small.manifest, updates, like=adapter)
    return out


def test_every_adapter_is_itself(adapter_path):
    found = diff(read(adapter_path), read(adapter_path))
    assert found.same
    assert found.total.relative == 0
    assert all(row.identical for row in found.rows)
    wanted = math.sqrt(
        sum(float(d.square().sum()) for d in reference.deltas(adapter_path).values())
    )
    assert found.total.norms[0] == pytest.approx(wanted, rel=1e-6)
    json.dumps(found.to_dict(), allow_nan=False)


def test_figures_are_those_of_the_dense_updates(made, tmp_path):
    torch.manual_seed(3)
    other = changed(
        made,
        tmp_path / "b",
        lambda tensors: each(
            tensors, "lora_", lambda _, t: t + 0.3 * t.std() * torch.randn_like(t)
        ),
    )
    x, y = reference.deltas(made), reference.deltas(other)
    adapter = read(made)
    found = diff(adapter, read(other))
    key_prefixes = {module.name: module.key_prefix for module in adapter.manifest.modules}
    assert len(found.modules) == len(x)
    assert not found.same
    for row in found.modules:
        p, q = x[key_prefixes[row.name]], y[key_prefixes[row.name]]
        figures = row.figures
        assert figures.relative == pytest.approx(float((p - q).norm() / p.norm()), rel=1e-6)
        cosine = float((p * q).sum() / p.norm() / q.norm())
        assert figures.cosine == pytest.approx(cosine, rel=1e-6)
    whole = reference.relative_error(x, y)
    assert found.total.relative == pytest.approx(whole, rel=1e-6)


def test_angles_are_those_of_the_dense_updates(tmp_path):
    other = truncated(PLAIN, tmp_path / "b", 5)
    x, y = reference.deltas(PLAIN), reference.deltas(other)
    adapter = read(PLAIN)
    row = diff(adapter, read(other)).modules[0]
    key_prefix = adapter.module(row.name).key_prefix
    u, v = (torch.linalg.svd(d)[0][:, :k] for d, k in ((x[key_prefix], 16), (y[key_prefix], 5)))
    sines = torch.linalg.svdvals(v - u @ (u.mT @ v)).flip(0)
    assert row.figures.columns.angles == pytest.approx(sines.asin().tolist(), rel=1e-4)


def test_other_factors_of_the_same_update_are_the_same(tmp_path):
    torch.manual_seed(1)
    g = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]

    def turn(key, t):
        return g.mT @ t.double() if "lora_A" in key else t.double() @ g

    other = changed(PLAIN, tmp_path / "b", lambda tensors: each(tensors, "lora_", turn))
    found = diff(read(PLAIN), read(other))
    assert found.same
    assert 0 < found.total.relative < 1e-14
    assert found.to_dict()["summary"][0].startswith("same update, other factors")
    single = changed(
        PLAIN,
        tmp_path / "c",
        lambda tensors: each(tensors, "lora_", lambda k, t: turn(k, t).float()),
    )
    assert diff(read(PLAIN), read(single)).same


def test_another_scale_model_of_the_same_update_is_the_same(tmp_path):
    other = changed(PLAIN, tmp_path / "b", use_rslora=True, lora_alpha=8)  # 8 / √16 = 32 / 16
    found = diff(read(PLAIN), read(other))
    assert found.same
    assert found.total.relative == 0


def test_a_scaled_copy_is_named_with_its_factor(tmp_path):
    other = changed(PLAIN, tmp_path / "b", lora_alpha=16)
    found = diff(read(PLAIN), read(other))
    assert found.total.relative == pytest.approx(0.5)
    assert found.total.cosine == pytest.approx(1)
    assert found.to_dict()["summary"] == ["B is 0.5 × A"]
    assert diff(read(other), read(PLAIN)).to_dict()["summary"] == ["B is 2 × A"]


def test_a_truncation_is_named_with_its_error(tmp_path):
    other = truncated(PLAIN, tmp_path / "b", 8)
    error = reference.relative_error(reference.deltas(PLAIN), reference.deltas(other))
    found = diff(read(PLAIN), read(other))
    assert found.total.relative == pytest.approx(error, rel=1e-6)
    (sentence,) = found.to_dict()["summary"]
    assert sentence.startswith("B is a rank-8 truncation of A: error ")
    assert sentence.endswith("no new directions")
    (back,) = diff(read(other), read(PLAIN)).to_dict()["summary"]
    loose = diff(read(PLAIN), read(other), DiffOptions(tolerance=0.9))
    assert loose.same
    assert loose.to_dict()["summary"][0] == sentence
    assert back == sentence.replace("B is", "A is").replace("of A", "of B")


def test_a_cut_that_is_not_the_best_is_no_truncation(tmp_path):
    def cut(key, t):
        return t[:8] if "lora_A" in key else t[:, :8]

    other = changed(
        PLAIN, tmp_path / "b", lambda tensors: each(tensors, "lora_", cut), r=8, lora_alpha=16
    )
    assert "truncation" not in diff(read(PLAIN), read(other)).to_dict()["summary"][0]


def test_modules_of_one_side_count_in_the_total(tmp_path):
    def drop(tensors):
        return {key: t for key, t in tensors.items() if "layer.0." not in key}

    other = changed(PLAIN, tmp_path / "b", drop)
    x = reference.deltas(PLAIN)
    lost = sum(float(d.square().sum()) for name, d in x.items() if "layer.0." in name)
    whole = sum(float(d.square().sum()) for d in x.values())
    found = diff(read(PLAIN), read(other))
    assert not found.same
    assert found.total.relative == pytest.approx(math.sqrt(lost / whole))
    outcomes = [row.outcome(0) for row in found.modules]
    assert outcomes.count("only in A") == sum("layer.0." in name for name in x)
    back = diff(read(other), read(PLAIN))
    assert back.total.difference == pytest.approx(math.sqrt(lost))
    assert [row.outcome(0) for row in back.modules].count("only in B") == outcomes.count(
        "only in A"
    )
    json.dumps(back.to_dict(), allow_nan=False)


def test_a_missing_module_that_adds_nothing_is_not_missed(tmp_path):
    def zero(key, t):
        return t * 0 if "layer.0." in key else t

    def drop(tensors):
        return {key: t for key, t in tensors.items() if "layer.0." not in key}

    a = changed(PLAIN, tmp_path / "a", lambda tensors: each(tensors, "lora_B", zero))
    b = changed(PLAIN, tmp_path / "b", drop)
    assert diff(read(a), read(b)).same
    assert not diff(read(a), read(PLAIN)).same  # there A is zero, and B is not
    row = diff(read(a), read(PLAIN)).modules[0]
    assert row.figures.relative == math.inf
    assert row.figures.cosine is None


@pytest.mark.parametrize("side", ["a", "b"])
def test_names_are_aligned_over_a_prefix(side, tmp_path):
    old, new = "base_model.model.", "base_model.model.model."
    other = changed(
        PLAIN,
        tmp_path / "x",
        lambda tensors: {key.replace(old, new): t for key, t in tensors.items()},
    )
    pair = (other, PLAIN) if side == "a" else (PLAIN, other)
    found = diff(*map(read, pair))
    assert found.same
    assert all(row.names[0] != row.names[1] for row in found.rows)


def test_one_layer_does_not_pass_for_another(tmp_path):
    def only(number):
        return lambda tensors: {k: t for k, t in tensors.items() if f"layer.{number}." in k}

    a, b = (changed(PLAIN, tmp_path / str(n), only(n)) for n in (0, 1))
    found = diff(read(a), read(b))
    assert {row.outcome(1e-6) for row in found.rows} == {"only in A", "only in B"}


def test_names_that_fit_in_several_places_are_refused(tmp_path):
    def towers(tensors):
        names = ("encoder", "left.encoder"), ("encoder", "right.encoder")
        return {k.replace(*swap, 1): t.clone() for swap in names for k, t in tensors.items()}

    b = changed(PLAIN, tmp_path / "b", towers)
    with pytest.raises(FormatError, match=r"several places: left\., right\."):
        diff(read(PLAIN), read(b))


def test_a_prefix_is_noted_and_never_has_a_number(tmp_path):
    def deeper(tensors):
        return {k.replace("encoder.", "bert.encoder.", 1): t for k, t in tensors.items()}

    found = diff(read(PLAIN), read(changed(PLAIN, tmp_path / "b", deeper)))
    assert {row.outcome(1e-6) for row in found.rows} == {"same"}
    assert any("begin with '' where those of B begin with 'bert.'" in note for note in found.notes)

    def only(tensors):
        kept = {k: t for k, t in tensors.items() if "layer.0.attention.self.query" in k}
        return {k.replace("encoder.layer.0.attention.", ""): t for k, t in kept.items()}

    bare = diff(read(changed(PLAIN, tmp_path / "a", only)), read(PLAIN))
    assert {row.outcome(1e-6) for row in bare.rows} == {"only in A", "only in B"}


def test_other_shapes_are_listed_and_differ(tmp_path):
    other = changed(
        PLAIN,
        tmp_path / "b",
        lambda tensors: each(
            tensors, "layer.0.attention.self.query.lora_B", lambda _, t: torch.cat([t, t])
        ),
    )
    found = diff(read(PLAIN), read(other))
    (row,) = found.differing
    assert row.outcome(1.0) == "other shape"
    assert row.shapes == ((384, 384), (768, 384))
    assert found.total.relative == 0
    assert "1 module of another shape, not counted in the total" in found.to_dict()["summary"]
    assert "384×384 → 768×384" in text(found)


def test_magnitudes_are_compared_too(tmp_path):
    source = FIXTURES / "minilm-dora"
    b = changed(
        source, tmp_path / "b", lambda tensors: each(tensors, "magnitude", lambda _, t: 1.01 * t)
    )
    found = diff(read(source), read(b))
    assert not found.same
    assert found.total.relative == 0
    assert found.modules[0].figures.magnitude == pytest.approx(0.01, rel=1e-4)
    assert "low-rank direction" in found.notes[0]
    assert found.to_dict()["summary"] == [
        "same update",
        f"{len(found.rows)} modules with another magnitude, by up to 1 %",
    ]
    loose = diff(read(source), read(b), DiffOptions(tolerance=0.02))
    assert loose.same
    assert loose.to_dict()["summary"][1] == "within the tolerance of 2 %: no difference"


def test_biases_of_b_are_compared_with_their_scale(tmp_path):
    source = FIXTURES / "minilm-lorabias"
    b = changed(
        source, tmp_path / "b", lambda tensors: each(tensors, "lora_B.bias", lambda _, t: t * 1.5)
    )
    found = diff(read(source), read(b))
    assert not found.same
    assert found.modules[0].figures.bias == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("name", ["minilm-bias", "minilm-tokens"])
def test_other_tensors_are_compared(name, tmp_path):
    source = FIXTURES / name
    keys = [extra.key for extra in read(source).manifest.extras]
    assert keys
    b = changed(source, tmp_path / "b", lambda tensors: each(tensors, keys[0], lambda _, t: t * 3))
    found = diff(read(source), read(b))
    (row,) = found.differing
    assert (row.kind, row.name) == ("tensor", keys[0])
    assert row.figures.relative == pytest.approx(2, rel=1e-3)
    c = changed(
        source, tmp_path / "c", lambda tensors: {k: tensors[k] for k in tensors if k != keys[0]}
    )
    (row,) = diff(read(source), read(c)).differing
    assert row.outcome(0) == "only in A"


def test_a_cast_is_not_the_same_and_is_called_rounding(tmp_path):
    b = changed(PLAIN, tmp_path / "b", lambda t: each(t, "lora_", lambda _, x: x.bfloat16()))
    found = diff(read(PLAIN), read(b))
    error = reference.relative_error(reference.deltas(PLAIN), reference.deltas(b))
    assert found.total.relative == pytest.approx(error, rel=1e-6)
    assert not found.same
    assert found.to_dict()["summary"][0].startswith("nearly the same update")


def test_other_base_models_are_noted(tmp_path):
    b = changed(PLAIN, tmp_path / "b", base_model_name_or_path="another/model")
    found = diff(read(PLAIN), read(b))
    assert found.same
    assert "another/model" in found.notes[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("fixture", "part"),
    [
        ("minilm-plain", "layer.3.attention.self.value.lora_B"),
        ("minilm-dora", "layer.3.attention.self.value.lora_magnitude"),
        ("minilm-lorabias", "layer.3.attention.self.value.lora_B.bias"),
        ("minilm-bias", "classifier.weight"),
    ],
)
def test_nan_is_named(bad, fixture, part, tmp_path):
    def spoil(_, t):
        t.view(-1)[7 % t.numel()] = bad
        return t

    source = FIXTURES / fixture
    b = changed(source, tmp_path / "b", lambda tensors: each(tensors, part, spoil))
    for pair in ((source, b), (b, source), (b, b)):
        with pytest.raises(NonFiniteError) as caught:
            diff(*map(read, pair))
        assert part in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_a_lone_module_of_nan_is_named(tmp_path):
    def only(tensors):
        kept = {k: t for k, t in tensors.items() if "layer.0." in k}
        next(iter(kept.values()))[0, 0] = math.nan
        return kept

    def rest(tensors):
        return {k: t for k, t in tensors.items() if "layer.0." not in k}

    a, b = changed(PLAIN, tmp_path / "a", only), changed(PLAIN, tmp_path / "b", rest)
    with pytest.raises(NonFiniteError, match=r"layer\.0\."):
        diff(read(a), read(b))


def test_patterns_choose_what_is_compared(tmp_path):
    b = changed(PLAIN, tmp_path / "b", lambda t: each(t, "query.lora_B", lambda _, x: 2 * x))
    pair = read(PLAIN), read(b)
    assert not diff(*pair).same
    assert diff(*pair, DiffOptions(exclude=("query",))).same
    found = diff(*pair, DiffOptions(include=("layer.0.*",)))
    assert len(found.rows) == 2
    assert "left out by the patterns" in found.notes[-1]
    with pytest.raises(PolicyError, match="nothing"):
        diff(*pair, DiffOptions(include=("nothing",)))
    with pytest.raises(LoraToolsError):
        DiffOptions(tolerance=-1)
    with pytest.raises(LoraToolsError):
        DiffOptions(tolerance=math.nan)


def test_no_engine_changes_a_number(made, tmp_path):
    other = truncated(made, tmp_path / "b", 2)
    serial, threads = (diff(read(made), read(other), None, e) for e in (Serial(), Threads(3)))
    assert serial.to_dict() == threads.to_dict()


def test_each_module_has_its_own_line_if_asked(tmp_path):
    b = changed(PLAIN, tmp_path / "b", lora_alpha=16)
    found = diff(read(PLAIN), read(b))
    assert len(text(found, full=True).splitlines()) == len(text(found).splitlines()) + 10


def test_pickles_and_types_do_not_matter(tmp_path):
    source = FIXTURES / "minilm-bin"
    b = changed(source, tmp_path / "b")
    assert diff(read(source), read(b)).same
    assert load_file(b / "adapter_model.safetensors")
    assert np.isfinite(diff(read(source), read(b)).total.norms[0])


@pytest.mark.parametrize("name", ["minilm-plain", "minilm-dora", "moe-experts", "conv-mixed"])
def test_a_gpu_computes_what_the_cpu_does(name, tmp_path, gpu):
    pair = read(FIXTURES / name), read(truncated(FIXTURES / name, tmp_path / "b", 2))
    host = diff(*pair)
    with gpu:
        device = diff(*pair, DiffOptions(device="cuda"))
    for x, y in zip(host.modules, device.modules, strict=True):
        assert y.figures.relative == pytest.approx(x.figures.relative, rel=1e-6, abs=1e-12)
        assert y.figures.columns.angles == pytest.approx(x.figures.columns.angles, rel=1e-4)
