"""Extraction on a GPU, wherever there is one."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from lora_tools import Fixed
from lora_tools.verbs.extract import ExtractOptions, Precision, extract, plan


@pytest.mark.parametrize("small", [16, 2048])
def test_a_gpu_extracts_what_the_cpu_does(tmp_path, small, gpu):
    torch.manual_seed(0)
    sizes = torch.arange(1, 201) ** -0.7
    base = {f"layers.{i}.up.weight": torch.randn(700, 900) for i in range(3)}
    tuned = {
        n: w + (torch.randn(700, 200) * sizes) @ torch.randn(200, 900) for n, w in base.items()
    }
    for name, weights in (("base", base), ("tuned", tuned)):
        save_file(weights, tmp_path / f"{name}.safetensors")
    reports = []
    for device in ("cpu", "cuda"):
        options = ExtractOptions(device=device, precision=Precision(small=small))
        found = plan(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", options)
        out = tmp_path / device
        where = gpu if device == "cuda" else nullcontext()
        with extract(found, Fixed(8), out) as extraction, where:
            reports.append(extraction.run())
    for x, y in zip(reports[0].extracted, reports[1].extracted, strict=True):
        assert y.error == pytest.approx(x.error, rel=1e-4)
        assert y.error >= y.optimal_error_lower_bound * (1 - 1e-6)


@pytest.mark.parametrize("shape", [(1, 96), (96, 1), (1, 1)])
def test_a_matrix_of_one_row_or_column_is_extracted(tmp_path, shape, gpu):
    base = torch.randn(shape).bfloat16()
    save_file({"score.weight": base}, tmp_path / "base.safetensors")
    save_file({"score.weight": base + 1}, tmp_path / "tuned.safetensors")
    found = plan(
        tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", ExtractOptions(device="cuda")
    )
    with extract(found, Fixed(4), tmp_path / "out") as extraction, gpu:
        (row,) = extraction.run().extracted
    assert row.error < 1e-2


@pytest.mark.parametrize("setting", ["medium", "high"])
def test_a_certificate_holds_whatever_precision_was_set(tmp_path, setting, gpu):
    torch.manual_seed(0)
    sizes = torch.arange(1, 201) ** -0.7
    base = torch.randn(700, 900)
    tuned = base + (torch.randn(700, 200) * sizes) @ torch.randn(200, 900)
    for name, weight in (("base", base), ("tuned", tuned)):
        save_file({"layers.0.up.weight": weight}, tmp_path / f"{name}.safetensors")
    options = ExtractOptions(device="cuda", precision=Precision(small=16))
    found = plan(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", options)
    torch.set_float32_matmul_precision(setting)
    try:
        with extract(found, Fixed(8), tmp_path / "out") as extraction, gpu:
            (row,) = extraction.run().extracted
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")
    squares = torch.linalg.svdvals(tuned.double() - base.double()).square()
    best = float((squares[8:].sum() / squares.sum()).sqrt())
    assert "krylov" in row.method
    assert row.optimal_error_lower_bound <= best * (1 + 1e-6)
    assert row.error == pytest.approx(best, rel=2e-3)
