"""Which files go along, and what tells them apart."""

import hashlib
import subprocess

import pytest

from lora_tools.errors import RefusedError
from lora_tools.verbs.push.files import digest, select


def filled(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_an_adapters_files_and_no_others(tmp_path):
    wanted = {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "LICENSE.txt",
        "lora_tools_report.json",
        "tokenizer.json",
        "picture.png",
    }
    others = ("optimizer.pt", "train.log", ".env", ".git/config", "checkpoint-1/x.safetensors")
    chosen = select(filled(tmp_path, *wanted, *others))
    assert set(chosen.files) == wanted
    assert set(chosen.left_out) == {"optimizer.pt", "train.log", ".env", ".git", "checkpoint-1/"}
    assert chosen.left_out[".git"] == "hidden"


def test_include_takes_more_and_exclude_takes_less(tmp_path):
    filled(tmp_path, "adapter_model.safetensors", "run.py", "unet/x.safetensors", ".env", "a.png")
    chosen = select(tmp_path, ["*.py", "unet/*", ".env"], ["*.png"])
    assert set(chosen.files) == {"adapter_model.safetensors", "run.py", "unet/x.safetensors"}
    assert chosen.left_out == {".env": "hidden", "a.png": "excluded"}


def test_links_within_the_folder_go_along_and_others_are_refused(tmp_path):
    folder, secret = filled(tmp_path / "mine", "config.json"), tmp_path / "secret.txt"
    secret.write_text("x")
    (folder / "LICENSE").symlink_to(folder / "config.json")
    assert set(select(folder).files) == {"LICENSE", "config.json"}
    (folder / "NOTICE").symlink_to(secret)
    with pytest.raises(RefusedError, match=r"NOTICE → .*secret\.txt"):
        select(folder)
    assert "NOTICE" in select(folder, exclude=["NOTICE"]).left_out


@pytest.mark.parametrize("content", [b"", b"x", b"long" * 1_000_000])
def test_digests_are_those_of_git_and_sha256sum(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    command = ["git", "hash-object", str(tmp_path / "file")]
    oid = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for what in (content, tmp_path / "file"):
        assert digest(what) == (len(content), oid, hashlib.sha256(content).hexdigest())
