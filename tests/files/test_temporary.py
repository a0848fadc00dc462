"""A temporary folder goes, whatever happens."""

import shutil
import tempfile
from pathlib import Path

import pytest

from lora_tools.files.temporary import temporary_folder


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """Where the system has its temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_removed_with_all_that_is_in_it(system):
    with temporary_folder() as folder:
        assert folder.parent == system
        assert folder.name.startswith("lora-tools-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    assert list(system.iterdir()) == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), [(Path, "mkdir"), (shutil, "rmtree")])
def test_a_signal_leaves_nothing(system, monkeypatch, owner, name, after):
    real, times = getattr(owner, name), [0]

    def call(*arguments: object, **options: object) -> None:
        times[0] += 1
        if times[0] > 1 or after:
            real(*arguments, **options)
        if times[0] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, call)
    with pytest.raises(KeyboardInterrupt), temporary_folder() as folder:
        (folder / "file").write_text("x")
    assert list(system.iterdir()) == []


def test_what_cannot_be_removed_is_said(system, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="Input/output error"), temporary_folder():
        pass
