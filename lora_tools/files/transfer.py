"""Bytes by position: read into a buffer, written to a place, or copied by the kernel alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError
from lora_tools.files.disk import refusal
from lora_tools.files.layout import Layout
from lora_tools.files.location import Location

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 20
"""Bytes that are copied at once where the kernel cannot do it alone."""


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Yield a descriptor of a file, closed afterwards."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def begin(path: Path, plan: Layout) -> None:
    """Make a file of the planned size that holds its header and nothing else yet."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        with _naming(descriptor):
            os.truncate(descriptor, plan.size)
        put(descriptor, memoryview(plan.header), 0)


def get(
    descriptor: int, buffer: "bytearray | np.ndarray", position: int, path: Location | None = None
) -> None:
    """Fill a buffer of bytes from a file; ``path`` is what errors call it, if not what it is."""
    view = memoryview(buffer if isinstance(buffer, bytearray) else buffer.data)
    while view:
        with _naming(descriptor):
            count = os.preadv(descriptor, [view], position)
        if count == 0:
            raise CheckpointError(
                f"{path or _name(descriptor) or 'a file'}: became shorter while it was read"
            )
        view, position = view[count:], position + count


def put(descriptor: int, data: memoryview, position: int) -> None:
    """Write bytes at their place."""
    while data:
        with _naming(descriptor):
            count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


def copy(source: int, start: int, count: int, target: int, position: int) -> None:
    """Copy bytes from file to file, by the kernel alone where it can."""
    while count:
        try:
            done = os.copy_file_range(source, target, count, start, position)
        except OSError:  # another file system, or a kernel that cannot
            done = _copy_block(source, start, min(count, BLOCK), target, position)
        if done == 0:
            raise CheckpointError(
                f"{_name(source) or 'a file'}: became shorter while it was copied"
            )
        start, position, count = start + done, position + done, count - done


def _copy_block(source: int, start: int, count: int, target: int, position: int) -> int:
    with _naming(source):
        block = os.pread(source, count, start)
    put(target, memoryview(block), position)
    return len(block)


@contextmanager
def _naming(descriptor: int) -> Iterator[None]:
    """Give an error of the system, which names no file, that of the descriptor."""
    try:
        yield
    except OSError as error:
        path = _name(descriptor)
        if path is None:
            raise
        raise refusal(path, error) from error


def _name(descriptor: int) -> Path | None:
    """Return the file that a descriptor is of; None on another system than Linux."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
