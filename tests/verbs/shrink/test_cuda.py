"""Shrink on a GPU, wherever there is one."""

from pathlib import Path

import pytest

from lora_tools import Fixed, RewriteOptions, read, shrink

FIXTURES = Path(__file__).parents[3] / "fixtures"


@pytest.mark.parametrize(
    "name", ["minilm-plain", "minilm-rslora", "minilm-fp16-r32", "moe-experts", "minilm-dora"]
)
def test_a_gpu_computes_what_the_cpu_does(name, gpu):
    source = read(FIXTURES / name)
    host = [change.row for change in shrink(source, Fixed(2))]
    with gpu:
        device = [change.row for change in shrink(source, Fixed(2), RewriteOptions(device="cuda"))]
    for x, y in zip(host, device, strict=True):
        assert y.optimal_error == pytest.approx(x.optimal_error, rel=1e-6, abs=1e-9)
        assert y.error == pytest.approx(x.error, rel=1e-4, abs=1e-7)
