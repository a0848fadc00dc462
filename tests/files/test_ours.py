"""What --force may replace."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from lora_tools.files.ours import REPORT, foreign

PAGE = b"<!doctype html>\n<title>x \xc2\xb7 lora-tools inspect</title>"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        save({"a": torch.ones(2)}),
        b"GGUF\x03",
        b'{\n  "schema": "lora-tools/report/1"',
        PAGE,
        b"\x89PNG\r\n\x1a\n...",
        b"<?xml version",
        b"%PDF-1.4",
    ],
    ids=["empty", "safetensors", "gguf", "report", "page", "png", "svg", "pdf"],
)
def test_a_file_that_a_command_may_have_written(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert foreign(tmp_path / "x") == ""


@pytest.mark.parametrize(
    "data",
    [
        b"import os\n",
        b"{}",
        b"# lora-tools\n",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"<!doctype html>",
    ],
    ids=["code", "json", "text", "zip", "pickle", "another page"],
)
def test_a_file_that_no_command_writes(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert foreign(tmp_path / "x") == "it is no tensor file, report, page or picture"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return folder


def test_a_folder_is_ours_by_its_report(tmp_path):
    assert foreign(tmp_path) == ""
    adapter = fill(tmp_path / "a", "adapter_model.safetensors", "adapter_config.json")
    assert foreign(adapter) == f"there is no {REPORT} in it"
    assert foreign(fill(adapter, REPORT, "tokenizer.json")) == ""


@pytest.mark.parametrize("more", [".git/HEAD", "checkpoint-500/optimizer.pt", ".env"])
def test_a_folder_that_holds_more_than_a_command_writes_is_not(tmp_path, more):
    assert more.partition("/")[0] in foreign(fill(tmp_path, REPORT, more))


def test_links_are_no_loss_and_other_things_are_not_touched(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert foreign(tmp_path / "link") == ""
    assert "neither" in foreign(tmp_path / "pipe")
