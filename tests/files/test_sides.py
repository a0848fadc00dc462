import os
import stat
from pathlib import Path

import pytest

from lora_tools.errors import CheckpointError
from lora_tools.files.sides import LARGEST, carry, side_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "adapter"
    (inside / "sub").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (inside / "note.txt").write_text("note")
    (inside / "sub" / "deep.txt").write_text("deep")
    (inside / ".env").write_text("hidden")
    (inside / "adapter_model.safetensors").write_text("weights")
    links = {
        "absolute.txt": outside / "secret.txt",
        "relative.txt": "../outside/secret.txt",
        "folder": outside,
        "through.txt": "folder/secret.txt",
        "nothing.txt": "missing.txt",
        "loop.txt": "loop.txt",
        "one.txt": "two.txt",
        "two.txt": "one.txt",
        "near.txt": "note.txt",
        "below.txt": "sub/deep.txt",
        "env.txt": ".env",
        "weights.txt": "adapter_model.safetensors",
        "zero": "/dev/zero",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    os.mkfifo(inside / "pipe.txt")
    with (inside / "sparse.bin.txt").open("wb") as file:
        file.truncate(LARGEST + 1)
    return inside


def test_what_does_not_go_along_is_listed_with_its_reason(folder):
    carried, left_out = side_files(folder, ("adapter_model.safetensors",))
    assert [file.name for file in carried] == ["below.txt", "near.txt", "note.txt"]
    away, circle = "a link that leaves the folder", "a link that leads in circles"
    assert left_out == {
        ".env": "hidden",
        "absolute.txt": away,
        "env.txt": "hidden",
        "folder": away,
        "loop.txt": circle,
        "nothing.txt": "a link to nothing",
        "one.txt": circle,
        "pipe.txt": "not a file",
        "relative.txt": away,
        "sparse.bin.txt": "larger than 1 GiB",
        "sub": "a folder",
        "through.txt": away,
        "two.txt": circle,
        "weights.txt": "other weights or training state",
        "zero": away,
    }


def test_a_link_to_a_file_of_the_folder_is_copied_as_a_file(folder):
    for file in side_files(folder, ()).carried:
        carry(file, folder / "sub" / file.name)
    assert (folder / "sub" / "near.txt").read_text() == "note"
    assert (folder / "sub" / "below.txt").read_text() == "deep"
    assert not (folder / "sub" / "near.txt").is_symlink()


def test_what_the_hub_keeps_elsewhere_goes_along(tmp_path):
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "0123").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0123")
    (snapshot / "refs.txt").symlink_to("../../refs")
    (cache / "refs").write_text("x")
    carried, left_out = side_files(snapshot, ())
    assert [file.name for file in carried] == ["tokenizer.json"]
    assert left_out == {"refs.txt": "a link that leaves the folder"}


@pytest.mark.parametrize(
    ("before", "umask", "after"),
    [(0o600, 0o022, 0o600), (0o644, 0o022, 0o644), (0o777, 0o022, 0o644), (0o664, 0o077, 0o600)],
)
def test_a_copy_has_no_more_rights_than_its_source(before, umask, after, tmp_path):
    source, copy = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    source.chmod(before)
    old = os.umask(umask)
    try:
        carry(source, copy)
    finally:
        os.umask(old)
    assert stat.S_IMODE(copy.stat().st_mode) == after


def test_what_has_become_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a file"):
        carry(tmp_path / "pipe", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
