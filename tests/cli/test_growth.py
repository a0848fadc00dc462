"""Commands as a whole: with four times the modules they do four times the work, and no more."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from fuzz.seeds import MODEL, PEFT, factors, numbers, text
from safetensors.numpy import save_file

from lora_tools.cli import cli

SIZES = 50, 200
"""Modules: at four times as many, work that grows with their square is sixteen times as much."""

COMMANDS = (
    "inspect {adapter} --for all",
    "inspect {adapter} --spectrum --jobs 1",
    "inspect {adapter} --base {base} --jobs 1",
    "shrink {adapter} {out} --dry-run --jobs 1",
    "convert {adapter} {out} --to kohya",
    "convert {adapter} {out} --to mlx",
    "diff {adapter} {adapter} --jobs 1",
    "merge {base} {adapter} {out} --dry-run --jobs 1",
)
SHAPES = {
    "layers": lambda number: f"model.layers.{number // 4}.mlp.{'abcd'[number % 4]}_proj",
    "unlike": lambda number: f"m.{str(number).translate(LETTERS)}.q_proj",
}
LETTERS = str.maketrans("0123456789", "abcdefghij")


class Calls:
    """How many functions were called, Python's own among them."""

    def __init__(self) -> None:
        self.count = 0

    def hear(self, frame: object, event: str, argument: object) -> None:
        """Count what `sys.setprofile` tells."""
        self.count += event in ("call", "c_call")


@contextmanager
def counted() -> Iterator[Calls]:
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls.hear)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def written(folder: Path, count: int, shape: str) -> dict[str, Path]:
    """Write an adapter, and a base whose names have a prefix more."""
    names = [SHAPES[shape](number) for number in range(count)]
    adapter, base = folder / "adapter", folder / "base"
    for place in (adapter, base):
        place.mkdir(parents=True)
    tensors = factors(
        tuple(f"base_model.model.{name}" for name in names), ".lora_A.weight", ".lora_B.weight"
    )
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_bytes(text(PEFT | {"target_modules": names}))
    weight = numbers(8, 8)
    save_file({f"tower.{name}.weight": weight for name in names}, base / "model.safetensors")
    (base / "config.json").write_bytes(text(MODEL))
    return {"adapter": adapter, "base": base, "out": folder / "out"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("command", COMMANDS)
def test_work_grows_with_the_modules_and_no_faster(command, shape, tmp_path):
    counts = []
    for count in (8, *SIZES):  # the first imports what the others only use
        places = written(tmp_path / str(count), count, shape)
        with counted() as calls:
            done = CliRunner().invoke(cli, command.format(**places).split())
        assert done.exit_code in (0, 4), done.output  # a runtime may refuse it
        counts.append(calls.count)
    assert counts[2] < 5 * counts[1]
