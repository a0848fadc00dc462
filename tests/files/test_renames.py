"""Renames with and without a kernel that knows how."""

import errno
import os
from pathlib import Path

import pytest

from lora_tools.files import renames
from lora_tools.files.renames import aside, exchange, rename_exclusive


@pytest.fixture(params=[True, False], ids=["kernel", "by hand"])
def kernel(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    return request.param


def make(path: Path, kind: str) -> Path:
    if kind == "file":
        path.write_text(path.name)
    elif kind == "link":
        path.symlink_to(f"target of {path.name}")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "in").write_text(path.name)
    return path


def content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink()).removeprefix("target of ")
    return (path / "in" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_free_name_is_taken(tmp_path, kind, kernel):
    make(tmp_path / "a", kind)
    rename_exclusive(tmp_path / "a", tmp_path / "b")
    assert content(tmp_path / "b") == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", ["file", "folder", "link", "empty"])
def test_a_name_that_is_taken_is_left_alone(tmp_path, kind, there, kernel):
    a, b = make(tmp_path / "a", kind), make(tmp_path / "b", there)
    with pytest.raises(FileExistsError):
        rename_exclusive(a, b)
    assert content(a) == "a"
    assert there == "empty" or content(b) == "b"


@pytest.mark.parametrize("there", ["file", "folder", "link"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_is_taken_after_the_look_is_left_alone(tmp_path, kind, there, monkeypatch):
    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    a, b = make(tmp_path / "a", kind), make(tmp_path / "b", there)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(FileExistsError):
        rename_exclusive(a, b)
    assert (content(a), content(b)) == ("a", "b")


def test_a_file_system_without_links_has_its_files_renamed(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    monkeypatch.setattr(os, "link", refuse)
    rename_exclusive(make(tmp_path / "a", "file"), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("one", ["file", "folder", "link"])
@pytest.mark.parametrize("other", ["file", "folder", "link"])
def test_names_are_swapped(tmp_path, one, other, kernel):
    a, b = make(tmp_path / "a", one), make(tmp_path / "b", other)
    exchange(a, b)
    assert (content(a), content(b)) == ("b", "a")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_swap_that_fails_leaves_both_as_they_were(tmp_path, step, error, monkeypatch):
    a, b = make(tmp_path / "a", "folder"), make(tmp_path / "b", "folder")
    rename, count = os.rename, [0]

    def refuse(*paths: object) -> None:
        count[0] += 1
        if count[0] == step + 1:
            raise error("no")
        rename(*paths)

    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(error):
        exchange(a, b)
    assert (content(a), content(b)) == ("a", "b")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("flag", [renames.NOREPLACE, renames.EXCHANGE])
def test_what_the_kernel_refuses_is_raised_with_both_names(tmp_path, flag):
    with pytest.raises(FileNotFoundError) as caught:
        renames._renameat2(tmp_path / "a", tmp_path / "b", flag)
    assert (caught.value.filename, caught.value.filename2) == (
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    )


def test_what_was_replaced_lies_beside_what_replaces_it():
    assert aside(Path("work/out.html")) == Path("work/old")
