"""What the disk refuses, and who is named."""

import errno
import os
import pickle
import shutil

import numpy as np
import pytest

from lora_tools.errors import DiskError
from lora_tools.files.disk import naming, sync, sync_all, write_text
from lora_tools.files.header import Spec
from lora_tools.files.layout import layout
from lora_tools.files.sides import carry
from lora_tools.files.transfer import begin, copy, get, opened, put

PLAN = layout({"x": Spec("U8", (3,))})


def refuse(code: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_an_error_without_a_name_gets_one(tmp_path, code):
    with pytest.raises(DiskError) as caught, naming(tmp_path / "x"):
        refuse(code)()
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: {os.strerror(code)}")
    assert caught.value.errno == code
    assert ("MB are free" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_error_that_names_its_file_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), naming(tmp_path / "x"):
        (tmp_path / "y").read_bytes()
    with pytest.raises(FileNotFoundError, match="missing"):
        carry(tmp_path / "missing", tmp_path / "x")


def test_a_room_that_cannot_be_told_is_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", refuse(errno.EIO))
    with pytest.raises(DiskError, match=r"No space left on device\n"), naming(tmp_path / "x"):
        refuse(errno.ENOSPC)()


@pytest.mark.parametrize(
    ("call", "work"),
    [
        ("fsync", lambda folder, fd: sync(folder / "target")),
        ("fsync", lambda folder, fd: sync_all(folder)),
        ("pwrite", lambda folder, fd: put(fd, memoryview(b"abc"), 0)),
        ("truncate", lambda folder, fd: begin(folder / "target", PLAN)),
        ("preadv", lambda folder, fd: get(fd, np.empty(2, np.uint8), 0)),
        ("pread", lambda folder, fd: copy(fd, 0, 1, fd, 1)),
    ],
)
def test_calls_on_descriptors_name_their_file(tmp_path, monkeypatch, call, work):
    (tmp_path / "target").write_bytes(b"some bytes")
    with opened(tmp_path / "target", os.O_RDWR) as descriptor:
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
        monkeypatch.setattr(os, call, refuse(errno.EIO))
        with pytest.raises(DiskError, match="target: Input/output error"):
            work(tmp_path, descriptor)


def test_a_copy_to_a_full_disk_names_the_copy(tmp_path, monkeypatch):
    (tmp_path / "source").write_text("x")

    monkeypatch.setattr(shutil, "copyfileobj", refuse(errno.ENOSPC))
    with pytest.raises(DiskError, match="copy: No space left"):
        carry(tmp_path / "source", tmp_path / "copy")


def test_everything_below_a_folder_is_brought_to_the_disk(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_text(tmp_path / "a" / "b" / "file", "x")
    (tmp_path / "link").symlink_to("nowhere")
    synced, fsync = set(), os.fsync

    def watch(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    sync_all(tmp_path)
    paths = (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file")
    assert synced == {path.stat().st_ino for path in paths}


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        begin(tmp_path / "x", PLAN)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
