"""What the disk refuses, said with the file's name; and the wait until it has what was written."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lora_tools.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise what the system refuses as a `DiskError` that names the file.

    Calls on descriptors fail with a number and no name, and a copy names its source.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and error.errno not in FULL):
            raise
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> DiskError:
    """Return an error of the system with the file's name and, if the disk is full, its room."""
    message = DiskError(f"{path}: {error.strerror}")
    if error.errno in FULL:
        message = DiskError(f"{path}: {error.strerror}{_room(path)}")
        message.hint("Make room there, or choose an output path on another disk.")
    message.errno = error.errno
    return message


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_all(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk.

    The files go together: a file system's log then takes them in one turn instead of one each.
    """
    if path.is_dir():
        files = [place for place in path.rglob("*") if not place.is_symlink()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(sync, files))
    sync(path)


def write_text(path: Path, text: str) -> None:
    """Write a file of text; `DiskError` names it if the disk refuses."""
    with naming(path):
        path.write_text(text, encoding="utf-8")


def _room(path: Path) -> str:
    try:
        return f" ({shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free)"
    except OSError:
        return ""
