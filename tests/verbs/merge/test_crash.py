"""Kills, full disks and unreadable inputs: nothing that looks finished, and work that is kept."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_tools import read
from lora_tools.errors import CheckpointError, OutputError
from lora_tools.model import open_model
from lora_tools.verbs.merge import WeightedAdapter, merge, plan

LAYERS, WIDTH, RANK = 12, 768, 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A base of six shards, 85 MB in all, and an adapter of every other layer."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    index, factors = {}, {}
    for shard in range(6):
        tensors = {}
        for layer in range(LAYERS):
            key = f"model.layers.{shard * LAYERS + layer}.q_proj.weight"
            tensors[key] = torch.randn(WIDTH, WIDTH).bfloat16()
            stem = "base_model.model." + key.removesuffix(".weight")
            if layer % 2:
                factors[f"{stem}.lora_A.weight"] = torch.randn(RANK, WIDTH)
                factors[f"{stem}.lora_B.weight"] = torch.randn(WIDTH, RANK)
        name = f"model-{shard + 1:05d}-of-00006.safetensors"
        save_file(tensors, folder / "base" / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "base" / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    (folder / "base" / "config.json").write_text('{"model_type": "test"}')
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def command(inputs: Path, out: Path) -> list[str]:
    parts = ("merge", inputs / "base", inputs / "adapter", out, "--quiet")
    return [sys.executable, "-m", "lora_tools", *map(str, parts)]


def made(inputs: Path):
    return merge(plan(open_model(inputs / "base"), [WeightedAdapter(read(inputs / "adapter"))]))


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_ten_kills_at_random_moments_and_the_same_bytes(inputs, tmp_path):
    began = time.monotonic()
    subprocess.run(command(inputs, tmp_path / "whole"), check=True)
    whole = time.monotonic() - began
    out, chance, kills = tmp_path / "out", random.Random(0), 0
    before = weights(inputs / "base")
    while kills < 10:
        process = subprocess.Popen(command(inputs, out))
        time.sleep(chance.uniform(0.2, 1.0) * whole)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if out.exists():  # it was done before it could be killed: begin again
            assert weights(out) == weights(tmp_path / "whole")
            out.rename(tmp_path / f"done-{kills}-{time.monotonic_ns()}")
    subprocess.run(command(inputs, out), check=True)
    assert weights(out) == weights(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))
    assert weights(inputs / "base") == before


def test_a_failure_keeps_the_finished_shards_and_the_next_call_uses_them(
    inputs, tmp_path, monkeypatch
):
    jobs = import_module("lora_tools.verbs.merge.jobs")

    def put(descriptor: int, data: memoryview, position: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(
            "00004-of-00006.safetensors"
        ):
            raise OSError(28, "No space left on device")
        real(descriptor, data, position)

    real = jobs.put
    monkeypatch.setattr(jobs, "put", put)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left"):
        made(inputs).write(out)
    assert not out.exists()
    monkeypatch.setattr(jobs, "put", real)
    report = made(inputs).write(out)
    assert report.resumed == 3
    assert len(report.rows) == 36  # of the finished shards, too
    made(inputs).write(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:100],
        lambda data: bytes(len(data)),
        lambda data: data[:-4096] + bytes(4096),
        lambda data: b"",
    ],
    ids=["100 bytes", "zeros", "a last page of zeros", "empty"],
)
def test_a_finished_shard_that_is_not_as_it_was_is_made_again(inputs, tmp_path, monkeypatch, harm):
    jobs = import_module("lora_tools.verbs.merge.jobs")
    real, count = jobs.copy, [0]

    def copy(*arguments: int) -> None:
        count[0] += 1
        if count[0] > 20:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(jobs, "copy", copy)
    with pytest.raises(OSError, match="Input/output"):
        made(inputs).write(tmp_path / "out")
    monkeypatch.setattr(jobs, "copy", real)
    first, second, third = (
        tmp_path / ".out.partial" / "out" / f"model-{number:05d}-of-00006.safetensors"
        for number in (1, 2, 3)
    )
    assert {first, second, third} <= set(second.parent.iterdir())
    second.write_bytes(harm(second.read_bytes()))
    report = made(inputs).write(tmp_path / "out")
    assert report.resumed == 2
    made(inputs).write(tmp_path / "whole")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_another_merge_does_not_take_over_unfinished_shards(inputs, tmp_path, monkeypatch):
    jobs = import_module("lora_tools.verbs.merge.jobs")
    real, count = jobs.put, [0]

    def put(descriptor: int, data: memoryview, position: int) -> None:
        count[0] += 1
        if count[0] > 20:
            raise OSError(5, "Input/output error")
        real(descriptor, data, position)

    monkeypatch.setattr(jobs, "put", put)
    with pytest.raises(OSError, match="Input/output"):
        made(inputs).write(tmp_path / "out")
    monkeypatch.setattr(jobs, "put", real)
    other = merge(
        plan(open_model(inputs / "base"), [WeightedAdapter(read(inputs / "adapter"), 0.5)])
    )
    report = other.write(tmp_path / "out")
    assert report.resumed == 0
    other.write(tmp_path / "whole")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_base_that_shrinks_while_it_is_read_leaves_nothing(inputs, tmp_path, monkeypatch):
    merged = made(inputs)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(CheckpointError, match="became shorter"):
        merged.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_room_is_seen_before_the_first_byte(inputs, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"needs .* MB of disk space"):
        made(inputs).write(tmp_path / "out")
    assert not list(tmp_path.iterdir())
