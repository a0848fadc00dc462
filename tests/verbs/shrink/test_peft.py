"""The real peft loads what shrink writes, and computes what the report says."""

from pathlib import Path

import judge
import pytest
import torch

from lora_tools import Fixed, Report, RewriteOptions, read, shrink, staged, write
from lora_tools.adapter import REPORT
from lora_tools.errors import BoundError

FIXTURES = Path(__file__).parents[3] / "fixtures"
EVERYTHING = 10**6
HALF = ("minilm-rslora", "minilm-patterns", "minilm-embedding", "minilm-fp16-r32", "opencalm1b")


def shrunk(source: Path, out: Path, rank: int, **options) -> Path:
    result = shrink(read(source), Fixed(rank), RewriteOptions(**options))
    report: Report = result.report("shrink", str(rank))
    with staged(out) as folder:
        write(folder, result.manifest, report.watch(result), like=read(source))
        report.save(folder / REPORT)
    return out


@pytest.mark.parametrize("scale", ["fold", "keep"])
def test_at_full_rank_what_goes_in_comes_out(adapter_path, scale, tmp_path):
    out = shrunk(adapter_path, tmp_path / "out", EVERYTHING, scale=scale)
    before = judge.deltas(judge.load(judge.base_of(adapter_path), adapter_path))
    after = judge.deltas(judge.load(judge.base_of(adapter_path), out))
    half = any(name in adapter_path.name for name in HALF)
    allowed = max(judge.totals(out)["error"] * 1.01, 1e-6) if half else 1e-5
    assert judge.relative(before, after) <= allowed
    if scale == "keep":
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_lower_rank_costs_what_the_report_says(adapter_path, rank, tmp_path):
    before = judge.deltas(judge.load(judge.base_of(adapter_path), adapter_path))
    results = {}
    for scale in ("fold", "keep"):
        out = shrunk(adapter_path, tmp_path / scale, rank, scale=scale)
        results[scale] = judge.deltas(judge.load(judge.base_of(adapter_path), out))
        claimed = judge.totals(out)["error"]
        assert judge.relative(before, results[scale]) == pytest.approx(claimed, rel=1e-3, abs=2e-6)
        assert claimed >= judge.totals(out)["optimal_error"] - 1e-7
    rounding = 1e-2 if any(name in adapter_path.name for name in HALF) else 1e-5
    assert judge.relative(results["fold"], results["keep"]) <= rounding


def test_a_grouped_convolution_needs_a_rank_for_each_group():
    source = read(FIXTURES / "conv-mixed")
    with pytest.raises(BoundError, match="rank 1 cannot be kept in grouped"):
        shrink(source, Fixed(1))


def test_dora_merges_to_the_same_weights_at_full_rank(tmp_path):
    source = FIXTURES / "minilm-dora"
    out = shrunk(source, tmp_path / "out", EVERYTHING)
    before = judge.load(judge.base_of(source), source).merge_and_unload().state_dict()
    after = judge.load(judge.base_of(source), out).merge_and_unload().state_dict()
    for name in before:
        assert torch.allclose(before[name], after[name], atol=1e-6)


def test_forward_passes_agree_for_grouped_convolutions(tmp_path):
    source = FIXTURES / "conv-mixed"
    out = shrunk(source, tmp_path / "out", EVERYTHING)
    inputs = (torch.randn(2, 6, 20), torch.randn(2, 4, 12, 12), torch.randn(2, 3, 2, 8, 8))
    with torch.no_grad():
        before = judge.load(judge.base_of(source), source)(*inputs)
        after = judge.load(judge.base_of(source), out)(*inputs)
    for x, y in zip(before, after, strict=True):
        assert torch.allclose(x, y, atol=1e-5)
