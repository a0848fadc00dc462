"""Input files: only regular ones are opened, by every command and wherever a name may lead."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import FIXTURES
from safetensors.torch import save_file

from lora_tools.cli import cli
from lora_tools.errors import CheckpointError, LoraToolsError
from lora_tools.files.inputs import input_descriptor, open_input, read_input, read_text
from lora_tools.files.objects import read_object
from lora_tools.model import open_model

ADAPTER = FIXTURES / "minilm-fp16-r32"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.with_name(f"{path.name}.other"))
    path.with_name(f"{path.name}.other").symlink_to(path)


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL = {
    "a named pipe": pipe,
    "a device": endless,
    "a socket": listener,
    "symbolic links": circle,  # the system's own words
}


@pytest.mark.timeout(30)  # what waits for a pipe would wait for ever
@pytest.mark.parametrize("kind", SPECIAL)
def test_nothing_but_regular_files_is_opened(kind, tmp_path):
    path = tmp_path / "x"
    SPECIAL[kind](path)

    def descriptor(path: Path) -> None:
        with input_descriptor(path):
            pass

    for opening in (open_input, read_input, read_text, read_object, descriptor):
        with pytest.raises((CheckpointError, OSError), match=kind) as caught:
            opening(path)
        assert str(path) in str(caught.value)


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "x").write_bytes(b"hello")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_text(tmp_path / "link") == "hello"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="a folder, not a regular file"):
        open_input(tmp_path)


def test_what_is_larger_than_allowed_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"12345")
    assert read_input(path, most=5) == b"12345"
    with pytest.raises(CheckpointError, match=r"x\.json: larger than 4 bytes"):
        read_input(path, most=4)


def test_a_configuration_of_gigabytes_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(CheckpointError, match="larger than 100,000,000 bytes"):
        read_object(path)


def test_a_yaml_file_of_megabytes_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "hyperparameters.yaml"
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(CheckpointError, match="larger than 1,000,000 bytes"):
        read_object(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", SPECIAL)
def test_the_base_that_an_adapter_names_is_not_waited_for(kind, tmp_path):
    """Whoever made the adapter chose that path; it was not asked for."""
    folder = adapter(tmp_path / "a", "adapter_config.json")
    SPECIAL[kind](tmp_path / "base")
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert result.exit_code == 0, result.output


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(CheckpointError, match=r"README\.md: not a text in UTF-8"):
        read_text(tmp_path / "README.md")


def adapter(folder: Path, without: str) -> Path:
    """Copy an adapter's folder but for one file."""
    folder.mkdir()
    for file in ADAPTER.iterdir():
        if file.name != without and file.is_file():
            (folder / file.name).symlink_to(file)
    return folder


def base(folder: Path, without: str) -> Path:
    folder.mkdir()
    save_file({"q.weight": torch.ones(4, 4)}, folder / "model-1.safetensors")
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"q.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / without).unlink()
    return folder


COMMANDS = {
    "inspect": "inspect {a}",
    "for all": "inspect {a} --for all",
    "shrink": "shrink {a} {out} --rank 2",
    "convert": "convert {a} {out} --to kohya",
    "diff": f"diff {{a}} {ADAPTER}",
    "merge": "merge {b} {a} {out}",
    "push": "push {a} org/name --dry-run",
}
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("missing", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_what_is_no_file_of_an_adapter(command, missing, kind, tmp_path):
    folder = adapter(tmp_path / "a", missing)
    SPECIAL[kind](folder / missing)
    refuses(COMMANDS[command], tmp_path, a=folder, b=whole_base(tmp_path / "b"))
    if missing.endswith(".safetensors"):
        refuses(COMMANDS[command], tmp_path, a=folder / missing, b=tmp_path / "b")


BASES = {
    "merge": "merge {b} {a} {out}",
    "extract": "extract {b} {b} {out} --rank 2",
    "verify": "verify {b} {b} {a}",
    "inspect": "inspect {a} --base {b}",
    "diff": "diff {a} {a} --base {b}",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors.index.json", "model-1.safetensors"]
)
@pytest.mark.parametrize("command", BASES)
def test_every_command_refuses_what_is_no_file_of_a_base(command, missing, kind, tmp_path):
    folder = base(tmp_path / "b", missing)
    SPECIAL[kind](folder / missing)
    refuses(BASES[command], tmp_path, a=ADAPTER, b=folder)


def whole_base(folder: Path) -> Path:
    folder.mkdir()
    save_file({"q.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    return folder


def refuses(command: str, tmp_path: Path, **places: Path) -> None:
    out = tmp_path / "out"
    words = [word.format(out=out, **places) for word in command.split()]
    result = CliRunner().invoke(cli, words)
    error = getattr(result.exception, "cause", result.exception)  # diff's status wraps it
    assert isinstance(error, LoraToolsError | OSError), result.output
    assert not out.exists()


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    folder = whole_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    for name in ("../other.safetensors", "/etc/passwd"):
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"q.weight": name}}))
        with pytest.raises(CheckpointError, match="shards outside its folder"):
            open_model(folder)
