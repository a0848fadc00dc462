"""The folder of a work in progress: whose it is, what it is called, and what a kill leaves."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_tools.errors import OutputError
from lora_tools.files import work as module
from lora_tools.files.work import located, partial, working


def test_the_folder_is_hidden_private_and_of_a_fixed_name(tmp_path):
    with working(tmp_path / "out") as work:
        assert work.folder == tmp_path / ".out.partial" == partial(tmp_path / "out")
        assert work.folder.stat().st_mode & 0o777 == 0o700
        assert work.place.parent == work.folder
        work.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_is_cut_and_told_from_others_that_begin_so(tmp_path):
    names = ["x" * 250 + "a", "x" * 250 + "b", "ä" * 127, "x" * 255]
    folders = [partial(tmp_path / name).name for name in names]
    assert len(set(folders)) == 4
    assert all(len(name.encode()) <= 255 and name.endswith(".partial") for name in folders)
    assert partial(tmp_path / names[0]).name == folders[0]


HOLD = """
import sys
from pathlib import Path
from lora_tools.files.work import working
with working(Path(sys.argv[1])) as work:
    (work.folder / "out").mkdir()
    print("here", flush=True)
    sys.stdin.read()
"""


def test_another_process_has_it_until_it_is_killed(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"here\n"
        with pytest.raises(OutputError, match="being written by another process"), working(out):
            pytest.fail("entered")
        assert (tmp_path / ".out.partial" / "out").is_dir()
        child.kill()
    with working(out) as work:
        work.clear()
        assert [path.name for path in work.folder.iterdir()] == ["lock"]
        work.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    folder = tmp_path / ".out.partial"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(OutputError, match="is in the way"), working(tmp_path / "out"):
        pytest.fail("entered")
    assert [path.name for path in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_left_alone(tmp_path, kind):
    folder = tmp_path / ".out.partial"
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="is in the way"), working(tmp_path / "out"):
        pytest.fail("entered")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_owner_that_goes_in_between_is_waited_for(tmp_path, monkeypatch):
    """The lock that was opened is removed, with its folder, before it could be taken."""
    out, real, times = tmp_path / "out", fcntl.flock, [0]

    def flock(descriptor: int, how: int) -> None:
        times[0] += 1
        if times[0] == 1:
            (tmp_path / ".out.partial" / "lock").unlink()
            (tmp_path / ".out.partial").rmdir()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with working(out) as work:
        assert (work.folder / "lock").is_file()
    assert times == [2]


def test_without_locks_the_file_is_the_lock(tmp_path, monkeypatch):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with working(tmp_path / "out") as work:
        with pytest.raises(OutputError, match="or was killed") as caught:
            working(tmp_path / "out").__enter__()
        assert "remove this folder" in caught.value.__notes__[0]
        work.remove()
    with working(tmp_path / "out"):
        pass


def test_what_a_swap_has_put_aside_comes_back(tmp_path):
    out = tmp_path / "out"
    folder = tmp_path / ".out.partial"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "old").mkdir()
    (folder / "old" / "mine").write_text("mine")
    with working(out) as work:
        assert (out / "mine").read_text() == "mine"
        work.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_swap_has_put_aside_is_not_removed_where_it_cannot_come_back(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    with working(tmp_path / "out") as work:
        work.resting.write_text("mine")
        monkeypatch.setattr(module, "rename_exclusive", refuse)
        work.remove()
    assert (tmp_path / ".out.partial" / "old").read_text() == "mine"


def test_missing_folders_are_made_and_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "sync", synced.append)
    with working(tmp_path / "a" / "b" / "out"):
        pass
    assert synced == [tmp_path, tmp_path / "a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"), working(tmp_path / "file" / "b" / "out"):
        pytest.fail("entered")


def test_a_disk_too_full_for_the_lock_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "lock")

    monkeypatch.setattr(module, "_opened", full)
    with pytest.raises(OSError, match="No space left"), working(tmp_path / "out"):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_links_on_the_way_are_followed_and_the_last_is_not(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert located(tmp_path / "link" / "out") == tmp_path / "folder" / "out"
    assert located(tmp_path / "link") == tmp_path / "link"
    assert located(Path("..")) == Path.cwd().parent
