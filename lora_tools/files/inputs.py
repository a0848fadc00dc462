"""Input files: regular ones only, opened without ever waiting, texts up to a size."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lora_tools.errors import CheckpointError
from lora_tools.files.location import Location, local

MAX_TEXT = 100_000_000
"""The largest configuration, index or card that is read, in bytes."""

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
"""What may be found where a file is expected."""


def is_present(path: Location) -> bool:
    """Whether there is something at a path, be it a link to nothing: opening it says what."""
    return path.exists() or (isinstance(path, Path) and path.is_symlink())


def open_input(path: Location) -> IO[bytes]:
    """Open a regular file for reading in binary; links to one are fine.

    A named pipe or a device is refused with a `CheckpointError`, and not waited for: neither has
    an end. Raises `OSError` if there is nothing, or links that lead in a circle.
    """
    if isinstance(path, Path):
        return os.fdopen(_descriptor(path), "rb")
    check_regular(stat.S_IFDIR if path.is_dir() else stat.S_IFREG, path)
    return path.open()


def read_input(path: Location, most: int = MAX_TEXT) -> bytes:
    """Return the bytes of a regular file; `CheckpointError` if there are more than ``most``."""
    with open_input(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CheckpointError(f"{path}: larger than {most:,} bytes, the most that is read of it")
    return data


def read_text(path: Location, most: int = MAX_TEXT) -> str:
    """Return the text of a regular file in UTF-8; `CheckpointError` if it is none."""
    try:
        return read_input(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a text in UTF-8 ({error.reason})") from error


def resolved(path: Path) -> Path:
    """Return a path without links; `OSError` if they lead in a circle, in every Python."""
    try:
        return path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


@contextmanager
def input_descriptor(path: Location) -> Iterator[int]:
    """Yield a descriptor of a regular file, closed afterwards; raises what `open_input` does."""
    descriptor = _descriptor(local(path))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_regular(mode: int, path: Location) -> None:
    """Raise `CheckpointError` unless a mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise CheckpointError(f"{path}: {kind}, not a regular file").hint(
            "Copy its contents into a file, and name that."
        )


def _descriptor(path: Path) -> int:
    check_regular(path.stat().st_mode, path)  # opening some devices already does something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(os.fstat(descriptor).st_mode, path)  # what was opened may be another file
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
