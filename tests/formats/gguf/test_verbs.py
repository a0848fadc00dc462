"""Verbs take a GGUF adapter as any other, once the heads are known."""

import pytest
import torch
from gguf_adapters import (
    LLAMA,
    as_llama_cpp_applies,
    as_the_converter_writes,
    converted,
    expected_of,
    file_in,
    made_up,
    model,
    peft,
)
from reference import relative_error
from safetensors.torch import load_file

from lora_tools.adapter import read, write
from lora_tools.errors import UnsupportedError
from lora_tools.linalg.rank import Energy, Fixed, MaxBytes
from lora_tools.model import open_model
from lora_tools.verbs.diff import diff
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan
from lora_tools.verbs.shrink import shrink
from lora_tools.verbs.verify import verify


def test_merge_and_verify_bring_rows_into_the_order_of_the_base(tmp_path):
    base = open_model(model(tmp_path / "base"))
    tensors, expected = made_up()
    file = as_the_converter_writes(tmp_path / "x.gguf", tensors)
    adapter = read(file, base=base.config)
    merge(plan(base, [WeightedAdapter(adapter)])).write(tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    for path, delta in expected.items():
        wide = before[f"{path}.weight"].double() + 2 * torch.from_numpy(
            delta.T if "embed" in path else delta
        )
        assert torch.equal(merged[f"{path}.weight"], wide.float())
    recipe = plan(base, [WeightedAdapter(adapter)], MergeOptions(None))
    assert verify(open_model(tmp_path / "merged").tensors, recipe).passed
    with pytest.raises(UnsupportedError, match="does not say how many heads"):
        plan(base, [WeightedAdapter(read(file))])


def test_diff_compares_across_formats_once_the_heads_are_known(tmp_path):
    source = peft(tmp_path / "peft")
    converted(source, tmp_path / "out")
    assert diff(read(source), read(tmp_path / "out", base=LLAMA)).same
    assert diff(read(tmp_path / "out"), read(tmp_path / "out")).same
    with pytest.raises(UnsupportedError, match=r"out: the rows of .*q_proj"):
        diff(read(source), read(tmp_path / "out"))
    wrong = LLAMA | {"num_attention_heads": 2}
    assert not diff(read(source), read(tmp_path / "out", base=wrong)).same


@pytest.mark.parametrize("policy", [Fixed(2), Energy(0.9)])
def test_shrink_needs_no_base_and_keeps_the_order_of_the_file(tmp_path, policy):
    source = peft(tmp_path / "peft")
    converted(source, tmp_path / "out")
    results = []
    for number, base in enumerate((None, LLAMA)):
        adapter = read(tmp_path / "out", base=base)
        small = shrink(adapter, policy)
        report = small.report("shrink")
        out = tmp_path / f"small{number}"
        out.mkdir()
        write(out, small.manifest, report.watch(small), like=adapter)
        found = {name: d for name, (d, _) in as_llama_cpp_applies(file_in(out)).items()}
        error = relative_error(expected_of(source), found)
        assert report.error == pytest.approx(error, rel=1e-5)
        assert error < 0.9
        again = read(out, base=LLAMA)
        scales = {module.scale for module in again.manifest.modules}
        assert scales == {1.0}  # in the factors, which one alpha can say at any ranks
        results.append(found)
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("count", [9_000, 12_345, 15_000])
def test_a_budget_of_bytes_counts_what_fills_places_up(tmp_path, count):
    converted(peft(tmp_path / "peft", rank_pattern={"v_proj": 2}), tmp_path / "out")
    adapter = read(tmp_path / "out")
    small = shrink(adapter, MaxBytes(count))
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    size = file_in(tmp_path / "small").stat().st_size
    assert 0.8 * count < size <= count
    assert size == small.layout.size


def test_inspect_says_what_the_file_leaves_open(tmp_path):
    converted(peft(tmp_path / "peft"), tmp_path / "out")
    shown = inspect(read(tmp_path / "out")).to_dict()
    assert shown["format"] == "gguf"
    assert "rows of 4 modules have the interleaved RoPE layout" in shown["notes"][0]
    assert {module["scale"] for module in shown["modules"]} == {2.0}
    assert inspect(read(tmp_path / "out", base=LLAMA)).to_dict()["notes"] == []
    spectra = inspect(read(tmp_path / "out"), spectrum=True).to_dict()["modules"]
    known = inspect(read(tmp_path / "out", base=LLAMA), spectrum=True).to_dict()["modules"]
    for one, other in zip(spectra, known, strict=True):
        assert one["spectrum"]["sigma"] == pytest.approx(other["spectrum"]["sigma"], rel=1e-12)
