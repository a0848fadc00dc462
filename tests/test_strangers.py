"""What files name is text: nothing but what a person names is opened, asked about or fetched."""

import json
import socket
from pathlib import Path

import pytest
import torch
from looks import looked_at
from safetensors.torch import save_file

from lora_tools.cli import cli

NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A model on this machine that only files name; and no network."""
    folder = model(tmp_path / "trap")
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments):
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return folder


def model(folder: Path, **config: object) -> Path:
    folder.mkdir()
    torch.manual_seed(1)
    save_file({f"{NAME}.weight": torch.randn(6, 6)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return folder


def adapter(folder: Path, named: str) -> Path:
    """Write an adapter whose every field that may name something names the trap."""
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {
        f"base_model.model.{NAME}.lora_A.weight": torch.randn(2, 6),
        f"base_model.model.{NAME}.lora_B.weight": torch.randn(6, 2),
    }
    metadata = {"format": "pt", "ss_sd_model_name": named, "modelspec.thumbnail": named}
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    names = ("base_model_name_or_path", "_name_or_path", "parent_library", "tokenizer_name_or_path")
    config |= dict.fromkeys(names, named)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"name_or_path": named}))
    (folder / "README.md").write_text(f"---\nbase_model: {json.dumps(named)}\n---\n# Cat\n")
    digests = {"model.safetensors": "0" * 64}
    report = {"source": named, "base": named, "inputs": [{"path": named, "files": digests}]}
    (folder / "lora_tools_report.json").write_text(json.dumps(report))
    return folder


VERBS = {
    "inspect": ("inspect", "A", "--spectrum", "--for", "all"),
    "diff": ("diff", "A", "A"),
    "shrink": ("shrink", "A", "OUT", "--rank", "1"),
    "convert": ("convert", "A", "OUT", "--to", "kohya"),
    "convert to mlx": ("convert", "A", "OUT", "--to", "mlx"),
    "merge": ("merge", "M", "A", "OUT"),
    "verify": ("verify", "M", "M", "A"),
    "extract": ("extract", "M", "M", "OUT", "--rank", "1", "--dry-run"),
}


@pytest.mark.parametrize("way", ["absolute", "relative", "hub"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_files_name_is_not_looked_at(verb, way, trap, tmp_path):
    named = {"absolute": str(trap), "relative": "../here/trap", "hub": "someone/trap"}[way]
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "someone").symlink_to(".")
    places = {
        "A": adapter(tmp_path / "adapter", named),
        "M": model(tmp_path / "model", _name_or_path=named),
        "OUT": tmp_path / "out",
    }
    words = [str(places.get(word, word)) for word in VERBS[verb]]
    with looked_at() as paths:
        cli.main(words, standalone_mode=False)
    ours = tuple(str(places[word]) for word in VERBS[verb] if word in ("A", "M"))
    assert any(path.startswith(ours) for path in paths)  # so that a look is seen
    assert [path for path in paths if "trap" in path or "someone" in path] == []


def test_a_base_is_read_where_it_is_asked_for(trap, tmp_path):
    words = ["inspect", str(adapter(tmp_path / "adapter", "someone/else")), "--base", str(trap)]
    with looked_at() as paths:
        cli.main(words, standalone_mode=False)
    assert str(trap / "config.json") in paths
