"""Merge on a GPU, wherever there is one."""

from pathlib import Path

import dense
import pytest
import torch
from bases import BASES
from conftest import FIXTURES

from lora_tools import Threads, read
from lora_tools.model import open_model
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan

NAMES = ["minilm-plain", "minilm-dora", "minilm-embedding", "gpt2-conv1d", "moe-experts"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_a_device_writes_what_the_host_does(name, dtype, gpu, tmp_path: Path):
    base = dense.save_base(tmp_path / "base", dense.state_of(BASES[name]()), dtype)
    recipe = plan(open_model(base), [WeightedAdapter(read(FIXTURES / name))], MergeOptions())
    host = merge(recipe).write(tmp_path / "host", Threads(2))
    with gpu:
        report = merge(recipe, device="cuda").write(tmp_path / "device", Threads(2))
    one, two = (dense.load_model(tmp_path / folder) for folder in ("host", "device"))
    for key, tensor in one.items():
        apart = int((tensor != two[key]).sum())
        assert apart <= 1e-4 * tensor.numel(), key
    for x, y in zip(host.rows, report.rows, strict=True):
        assert y.norm == pytest.approx(x.norm, rel=1e-5)
        assert y.error == pytest.approx(x.error, rel=1e-2, abs=1e-9)
