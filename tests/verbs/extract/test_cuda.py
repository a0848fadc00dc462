"""Extraction on a GPU, wherever there is one."""

import pytest
import torch
from marks import needs_gpu
from safetensors.torch import save_file

from lora_tools import Fixed
from lora_tools.verbs.extract import Options, Precision, extract, plan

pytestmark = needs_gpu("extract")


@pytest.mark.parametrize("small", [16, 2048])
def test_a_gpu_extracts_what_the_cpu_does(tmp_path, small):
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
        options = Options(device=device, precision=Precision(small=small))
        found = plan(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", options)
        out = tmp_path / device
        extraction = extract(found, Fixed(8), out)
        out.mkdir()
        reports.append(extraction.run(out))
    for x, y in zip(reports[0].extracted, reports[1].extracted, strict=True):
        assert y.error == pytest.approx(x.error, rel=1e-4)
        assert y.error >= y.optimal_error_lower_bound * (1 - 1e-6)
