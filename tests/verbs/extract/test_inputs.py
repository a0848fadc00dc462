"""Every shape that a pair of checkpoints comes in, and those that are refused by name."""

import json
from pathlib import Path

import judge
import pytest
import torch
import whole
from bases import BASES
from safetensors.torch import save_file
from torch import Tensor

from lora_tools import Fixed
from lora_tools.adapter import REPORT
from lora_tools.errors import FormatError, PolicyError, UnsupportedError
from lora_tools.verbs.extract import ExtractOptions, ExtractReport, extract, plan


def run(base: Path, tuned: Path, out: Path, rank: int = 4, options=None) -> ExtractReport:
    with extract(plan(base, tuned, options), Fixed(rank), out) as extraction:
        report = extraction.run()
        report.save(extraction.place / REPORT)
    return report


def save(folder: Path, weights: dict[str, Tensor], config: dict | None = None, shards=1) -> Path:
    """Write a checkpoint in so many shards, with an index where there are several."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    names, where = list(weights), {}
    for number in range(shards):
        part = {name: weights[name].contiguous() for name in names[number::shards]}
        file = f"model-{number}.safetensors" if shards > 1 else "model.safetensors"
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    if shards > 1:
        index = json.dumps({"weight_map": where})
        (folder / "model.safetensors.index.json").write_text(index)
    return folder


def layers(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    sizes = {"embed_tokens": (50, 16), "layers.0.up": (24, 16), "layers.1.up": (24, 16)}
    weights = {f"{name}.weight": torch.randn(size) for name, size in sizes.items()}
    return {name: w.to(dtype) for name, w in weights.items()} | {"norm.weight": torch.ones(16)}


def tuned_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {name: w + (0.1 * torch.randn(w.shape)).to(w.dtype) for name, w in weights.items()}


def renamed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}


def errors(report: ExtractReport) -> dict[str, float]:
    return {row.module: row.error for row in report.extracted}


def test_shards_differ_and_order_does_not_matter(tmp_path):
    base = layers()
    tuned = dict(reversed(tuned_of(base).items()))
    one = run(save(tmp_path / "a", base), save(tmp_path / "b", tuned), tmp_path / "one")
    two = run(
        save(tmp_path / "c", base, shards=3),
        save(tmp_path / "d", tuned, shards=2),
        tmp_path / "two",
    )
    assert errors(one) == errors(two)
    file = "adapter_model.safetensors"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    judged = whole.judge(tmp_path / "c", tmp_path / "d", tmp_path / "two", turned=("embed_tokens",))
    whole.check(judged, whole.report(tmp_path / "two"))


@pytest.mark.parametrize("sides", [("", "model."), ("model.", ""), ("bert.", "")])
def test_a_prefix_on_one_side_only(tmp_path, sides):
    base = layers()
    before, after = (renamed(w, p) for w, p in zip((base, tuned_of(base)), sides, strict=True))
    report = run(save(tmp_path / "a", before), save(tmp_path / "b", after), tmp_path / "out")
    assert {row.module for row in report.extracted} == {
        f"{sides[0]}{name}" for name in ("embed_tokens", "layers.0.up", "layers.1.up")
    }
    assert any("names begin with" in note for note in report.notes)


@pytest.mark.parametrize("pickled", ["one", "shards"])
def test_pickles(tmp_path, pickled):
    base = layers()
    tuned = tuned_of(base)
    folder = tmp_path / "b"
    folder.mkdir()
    if pickled == "one":
        torch.save(tuned, folder / "pytorch_model.bin")
    else:
        where = {}
        for number, (name, weight) in enumerate(tuned.items()):
            where[name] = f"pytorch_model-{number}.bin"
            torch.save({name: weight}, folder / where[name])
        index = json.dumps({"weight_map": where})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    report = run(save(tmp_path / "a", base), folder, tmp_path / "out")
    again = run(tmp_path / "a", save(tmp_path / "c", tuned), tmp_path / "again")
    assert errors(report) == errors(again)


@pytest.mark.parametrize(
    ("types", "factors", "slack"),
    [
        ((torch.float32, torch.bfloat16), "BF16", 1e-5),
        ((torch.float16, torch.float32), "F32", 1e-5),
        ((torch.float64, torch.float64), "F64", 1e-9),
    ],
)
def test_types_may_differ(tmp_path, types, factors, slack):
    base = {n: w.to(types[0]) for n, w in layers(torch.float64).items()}
    tuned = {n: w.to(types[1]) for n, w in tuned_of(layers(torch.float64)).items()}
    run(save(tmp_path / "a", base), save(tmp_path / "b", tuned), tmp_path / "out")
    judged = whole.judge(tmp_path / "a", tmp_path / "b", tmp_path / "out", turned=("embed_tokens",))
    whole.check(judged, whole.report(tmp_path / "out"), slack)
    found = plan(tmp_path / "a", tmp_path / "b")
    assert {found.dtype(item) for item in found.items if item.pair.place} == {factors}


@pytest.mark.parametrize("name", ["gpt2-conv1d", "conv-mixed", "moe-experts"])
def test_layers_of_every_kind_load_into_peft(tmp_path, name):
    """GPT-2's (in, out) layers, convolutions of 1 to 3 dimensions, stacks of experts."""
    model = BASES[name]()
    before = {n: w.clone() for n, w in model.state_dict().items() if "lm_head" not in n}
    skipped = ("grouped.weight",)  # a group count is in no checkpoint
    before = {n: w for n, w in before.items() if n not in skipped}
    after = tuned_of(before)
    config = {"model_type": "gpt2"} if name == "gpt2-conv1d" else {}
    config |= {"tie_word_embeddings": True}
    base, tuned = save(tmp_path / "a", before, config), save(tmp_path / "b", after, config)
    report = run(base, tuned, tmp_path / "out", 3)
    rows = {row.module: row for row in report.extracted}
    if name == "moe-experts":
        assert sum("experts" in module for module in rows) == 4
    updates = judge.deltas(judge.load(model, tmp_path / "out"))
    lost = {}
    for key, update in updates.items():
        module = key.removeprefix("base_model.model.").replace(".base_layer", "")
        if module.endswith("experts"):
            nested = sum(module in other.replace(".base_layer", "") for other in updates) == 2
            assert nested
            module += ".gate_up_proj" if key.endswith(".base_layer") else ".down_proj"
        weight = module if module in before else f"{module}.weight"
        change = after[weight].double() - before[weight].double()
        gap = change - update.double().reshape(change.shape)
        lost[module] = float(gap.norm() / change.norm())
    assert lost.keys() == rows.keys()
    for module, error in lost.items():
        assert error == pytest.approx(rows[module].error, abs=1e-5), module


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_an_output_layer_that_one_side_ties(tmp_path, side):
    base = renamed(layers(), "model.")
    tuned = tuned_of(base)
    table = "model.embed_tokens.weight"
    tied, free = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    if side == "base":
        tuned["lm_head.weight"] = base[table] + 0.1 * torch.randn(50, 16)
        change = tuned["lm_head.weight"] - base[table]
    else:
        base["lm_head.weight"] = base[table].clone()
        change = tuned[table] - base[table]
    configs = (tied, free) if side == "base" else (free, tied)
    report = run(
        save(tmp_path / "a", base, configs[0]),
        save(tmp_path / "b", tuned, configs[1]),
        tmp_path / "o",
    )
    row = next(row for row in report.extracted if row.module == "lm_head")
    assert row.norm == pytest.approx(float(change.norm()), rel=1e-5)
    assert any("lm_head.weight is tied to" in note for note in report.notes)


def test_a_vocabulary_that_grew_asks_what_to_do(tmp_path):
    base = layers()
    tuned = tuned_of(base)
    tuned["embed_tokens.weight"] = torch.cat([tuned["embed_tokens.weight"], torch.randn(3, 16)])
    a, b = save(tmp_path / "a", base), save(tmp_path / "b", tuned)
    with pytest.raises(PolicyError, match="embed_tokens 50 → 53"):
        plan(a, b)
    skipped = run(a, b, tmp_path / "skip", options=ExtractOptions(embeddings="skip"))
    left = {row.module: row for row in skipped.rows if row.outcome == "left out"}
    change = tuned["embed_tokens.weight"][:50] - base["embed_tokens.weight"]
    assert left["embed_tokens"].norm == pytest.approx(float(change.norm()), rel=1e-5)
    full = run(a, b, tmp_path / "full", options=ExtractOptions(embeddings="full"))
    assert [row.module for row in full.rows if row.outcome == "carried"] == ["embed_tokens"]
    written = whole.state(tmp_path / "full")["base_model.model.embed_tokens.weight"]
    assert torch.equal(written, tuned["embed_tokens.weight"])
    assert any("53 in the tuned model" in note for note in full.notes)


@pytest.mark.parametrize(
    ("scale", "spread"),
    [
        ("weight_scale", ()),
        ("weight_scale", (256, 1)),
        ("weight_scale_inv", (2, 2)),
        ("scale_weight", ()),
    ],
)
def test_scaled_float8_is_multiplied_back(tmp_path, scale, spread):
    torch.manual_seed(0)
    plain = {"layers.0.up.weight": torch.randn(256, 200), "layers.1.up.weight": torch.randn(24, 16)}
    factor = torch.rand(spread) + 0.5
    rows = factor.repeat_interleave(128, 0)[:256] if spread == (2, 2) else factor
    whole_scale = rows.repeat_interleave(128, 1)[:, :200] if spread == (2, 2) else rows
    eight = torch.randn(256, 200).to(torch.float8_e4m3fn)
    stored = {
        "layers.0.up.weight": eight,
        f"layers.0.up.{scale}": factor,
        "layers.1.up.weight": plain["layers.1.up.weight"] + 0.1,
    }
    blocks = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tuned = save(tmp_path / "b", stored, blocks if spread == (2, 2) else {})
    report = run(save(tmp_path / "a", plain), tuned, tmp_path / "out")
    change = eight.float() * whole_scale - plain["layers.0.up.weight"]
    row = next(row for row in report.extracted if row.module == "layers.0.up")
    assert row.norm == pytest.approx(float(change.norm()), rel=1e-5)


def test_blocks_are_of_the_size_that_the_configuration_says(tmp_path):
    """3 x 3 blocks of 64 of a matrix of 160 are 2 x 2 of 128 to nobody."""
    torch.manual_seed(0)
    plain = {"layers.0.up.weight": torch.randn(160, 160)}
    factor, eight = torch.rand(3, 3) + 0.5, torch.randn(160, 160).to(torch.float8_e4m3fn)
    stored = {"layers.0.up.weight": eight, "layers.0.up.weight_scale_inv": factor}
    whole_scale = factor.repeat_interleave(64, 0).repeat_interleave(64, 1)[:160, :160]
    change = eight.float() * whole_scale - plain["layers.0.up.weight"]
    stated = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    report = run(
        save(tmp_path / "a", plain), save(tmp_path / "b", stored, stated), tmp_path / "out"
    )
    (row,) = report.extracted
    assert row.norm == pytest.approx(float(change.norm()), rel=1e-5)
    with pytest.raises(UnsupportedError, match="no weight_block_size"):
        plan(tmp_path / "a", save(tmp_path / "c", stored))


@pytest.mark.parametrize(
    ("method", "key", "config"),
    [
        ("GPTQ", "layers.0.up.g_idx", None),
        ("GPTQ or AWQ", "layers.0.up.qzeros", None),
        ("bitsandbytes", "layers.0.up.weight.absmax", None),
        ("bitsandbytes", None, "bitsandbytes"),
        ("GPTQ", "layers.0.up.qweight", "gptq"),
        ("compressed-tensors", "layers.0.up.weight_packed", None),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(tmp_path, method, key, config):
    base = layers()
    extra = {key: torch.zeros(4)} if key else {}
    settings = {"quantization_config": {"quant_method": config}} if config else {}
    a, b = save(tmp_path / "a", base), save(tmp_path / "b", base | extra, settings)
    with pytest.raises(UnsupportedError, match=f"quantised with {method}"):
        plan(a, b)


def test_mxfp4_is_refused_by_name(tmp_path):
    parts = {
        f"layers.0.experts.{n}": torch.zeros(4, dtype=torch.uint8) for n in ("w_blocks", "w_scales")
    }
    a, b = save(tmp_path / "a", layers()), save(tmp_path / "b", layers() | parts)
    with pytest.raises(UnsupportedError, match="quantised with MXFP4"):
        plan(a, b)


def test_other_shapes_are_refused_with_the_first_five_and_a_count(tmp_path):
    base = {f"layers.{i}.up.weight": torch.ones(4, 4) for i in range(7)}
    tuned = {name: torch.ones(4, 5) for name in base}
    a, b = save(tmp_path / "a", base), save(tmp_path / "b", tuned)
    with pytest.raises(FormatError, match=r"7 shapes differ: .*layers.4.up.* and 2 more"):
        plan(a, b)


def test_another_architecture_is_refused(tmp_path):
    other = {f"blocks.{i}.fc": torch.ones(4, 4) for i in range(3)}
    with pytest.raises(FormatError, match="different architectures"):
        plan(save(tmp_path / "a", layers()), save(tmp_path / "b", other))
    few = {"layers.0.up.weight": torch.ones(24, 16)}
    with pytest.raises(FormatError, match="lacks 2 of the base's matrices"):
        plan(tmp_path / "a", save(tmp_path / "c", few))


def test_patterns_that_match_nothing_are_refused(tmp_path):
    a, b = save(tmp_path / "a", layers()), save(tmp_path / "b", tuned_of(layers()))
    with pytest.raises(PolicyError, match="no module matches down"):
        plan(a, b, ExtractOptions(exclude=("down",)))


def test_buffers_of_integers_are_listed(tmp_path):
    base = layers() | {"ids": torch.arange(4)}
    tuned = tuned_of(layers()) | {"ids": torch.arange(4) + 1}
    report = run(save(tmp_path / "a", base), save(tmp_path / "b", tuned), tmp_path / "out")
    row = next(row for row in report.rows if row.module == "ids")
    assert (row.outcome, row.reason) == ("left out", "not of a floating-point type")


def test_tensors_of_one_side_are_listed(tmp_path):
    base, tuned = layers() | {"old": torch.ones(2)}, tuned_of(layers()) | {"new": torch.ones(2)}
    report = run(save(tmp_path / "a", base), save(tmp_path / "b", tuned), tmp_path / "out")
    assert [(row.tensor, row.side, row.reason) for row in report.unmatched] == [
        ("old", "base", "not in the tuned model"),
        ("new", "tuned", "not in the base"),
    ]
    elements = 50 * 16 + 2 * 24 * 16 + 16
    assert report.compared.base == report.compared.tuned == pytest.approx(elements / (elements + 2))
    assert "all that changed there counted" in report.summary()
    assert "whole model" not in report.summary()


def test_scaled_weights_are_not_stored_whole_without_their_scales(tmp_path):
    plain = {"embed_tokens.weight": torch.randn(8, 4), "layers.0.up.weight": torch.randn(8, 4)}
    stored = {
        "embed_tokens.weight": torch.randn(8, 4).to(torch.float8_e4m3fn),
        "embed_tokens.weight_scale": torch.tensor(0.5),
        "layers.0.up.weight": torch.randn(8, 4),
    }
    options = ExtractOptions(embeddings="full")
    a, b = save(tmp_path / "a", plain), save(tmp_path / "b", stored)
    report = run(a, b, tmp_path / "out", options=options)
    (row,) = (row for row in report.rows if row.module == "embed_tokens")
    assert (row.outcome, row.reason) == ("left out", "PEFT cannot store it whole")
