"""What files name is text: nothing but what a person names is opened, asked about or fetched."""

import json
import os
import socket
import stat
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


@pytest.mark.parametrize(
    "words",
    [
        ("shrink", "A", "OUT", "--rank", "1"),
        ("convert", "A", "OUT", "--to", "mlx"),
        ("merge", "M", "A", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_links_pipes_and_devices_stay_where_they_are(words, trap, tmp_path, capsys):
    places = {"A": adapter(tmp_path / "adapter", "x"), "M": model(tmp_path / "model")}
    places["OUT"] = tmp_path / "out"
    source = places["M" if words[0] == "merge" else "A"]
    (tmp_path / "secret.txt").write_text("secret")
    (source / "away.txt").symlink_to("../secret.txt")
    (source / "loop.txt").symlink_to("loop.txt")
    (source / "null.txt").symlink_to("/dev/null")
    os.mkfifo(source / "pipe.txt")
    (source / "note.txt").write_text("note")
    (source / "note.txt").chmod(0o600)
    (source / "near.txt").symlink_to("note.txt")
    (source / "README.md").unlink(missing_ok=True)
    (source / "README.md").symlink_to("../secret.txt")
    cli.main([str(places.get(word, word)) for word in words], standalone_mode=False)
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "lora_tools_report.json").read_bytes())
    reasons = {
        "away.txt": "a link that leaves the folder",
        "loop.txt": "a link that leads in circles",
        "null.txt": "a link that leaves the folder",
        "pipe.txt": "not a file",
    }
    assert {name: report["left_out"].get(name) for name in reasons} == reasons
    assert all(f": {name} ({why})" in out for name, why in reasons.items())
    assert "README.md is left out: a link that leaves the folder" in report["notes"]
    assert not [name for name in reasons if os.path.lexists(tmp_path / "out" / name)]
    assert not any(file.read_bytes() == b"secret" for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "near.txt").read_text() == "note"
    for name in ("note.txt", "near.txt"):
        assert stat.S_IMODE((tmp_path / "out" / name).lstat().st_mode) == 0o600
        assert not (tmp_path / "out" / name).is_symlink()


@pytest.mark.parametrize("verb", ["shrink", "merge"])
def test_a_readme_in_another_encoding_costs_nothing(verb, trap, tmp_path):
    places = {"A": adapter(tmp_path / "adapter", "x"), "M": model(tmp_path / "model")}
    out, data = tmp_path / "out", "# Café\r\n".encode("latin-1")
    (places["M" if verb == "merge" else "A"] / "README.md").write_bytes(data)
    words = {"shrink": ("shrink", "A", out, "--rank", 1), "merge": ("merge", "M", "A", out)}[verb]
    cli.main([str(places.get(word, word)) for word in words], standalone_mode=False)
    assert (out / "README.md").read_bytes() == data
    report = json.loads((out / "lora_tools_report.json").read_bytes())
    assert any("README.md is not UTF-8" in note for note in report["notes"])
