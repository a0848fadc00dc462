"""Outputs of whole processes: locked, private where a source is, and never lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_tools.files.work import working

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An adapter, a base that fits it, and a fine-tune of the base."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(PLAIN, folder / "adapter")
    shutil.copytree(PLAIN, folder / "other")
    factors = load_file(PLAIN / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in factors if ".lora_A." in key]
    paths = [name.removeprefix("base_model.model.") for name in names]
    torch.manual_seed(0)
    weights = {f"{path}.weight": torch.randn(384, 384) for path in paths}
    for name, change in (("base", 0), ("tuned", 0.01)):
        (folder / name).mkdir()
        tensors = {key: value + change * torch.ones_like(value) for key, value in weights.items()}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


COMMANDS = {
    "shrink": lambda folder, out: ("shrink", folder / "adapter", out, "--rank", 2),
    "convert": lambda folder, out: ("convert", folder / "adapter", out, "--to", "kohya"),
    "combine": lambda folder, out: ("combine", folder / "adapter", folder / "other", out),
    "merge": lambda folder, out: ("merge", folder / "base", folder / "adapter", out),
    "extract": lambda folder, out: ("extract", folder / "base", folder / "tuned", out, "--rank", 2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_only_one_process_writes_an_output(folder, tmp_path, name):
    out = tmp_path / "out"
    with working(out):
        done = run(*COMMANDS[name](folder, out))
        assert done.returncode == 1
        assert f"{out}: is being written by another process" in done.stderr
        assert not out.exists()
    done = run(*COMMANDS[name](folder, out))  # takes over what was left
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("file", ["weights", "config"])
def test_what_is_made_from_a_private_file_is_private(folder, tmp_path, name, file):
    inputs = tmp_path / "inputs"
    shutil.copytree(folder, inputs)
    names = {
        "shrink": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
        "convert": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
        "combine": ("other/adapter_model.safetensors", "other/adapter_config.json"),
        "merge": ("base/model.safetensors", "base/config.json"),
        "extract": ("tuned/model.safetensors", "tuned/config.json"),
    }
    (inputs / names[name][file == "config"]).chmod(0o600)
    done = run(*COMMANDS[name](inputs, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o600}, modes


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_made_from_open_files_has_the_mode_of_the_umask(folder, tmp_path, name):
    out = tmp_path / "out"
    arguments = [str(argument) for argument in COMMANDS[name](folder, out)]
    for file in folder.rglob("*.*"):
        file.chmod(0o644)
    code = f"import os, sys; os.umask(0o022); sys.argv = {['x', *arguments]}; "
    code += "from lora_tools.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert set(modes.values()) == {0o644}, modes


@pytest.mark.parametrize("name", COMMANDS)
def test_a_project_is_replaced_by_no_command(folder, tmp_path, name):
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    done = run(*COMMANDS[name](folder, out), "--force")
    assert done.returncode == 1
    assert "does not look like an output of lora-tools: .git is in it" in done.stderr
    assert [path.name for path in out.iterdir()] == [".git"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
