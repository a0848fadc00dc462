"""Renames that lose nothing: onto a free name only, or two names swapped."""

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2
"""Of fcntl.h and linux/fs.h."""

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a kernel or a file system says that has no such rename."""

ASIDE = "old"


def rename_exclusive(src: Path, dst: Path) -> None:
    """Rename a file or folder to a name that is free; `FileExistsError` if it is not.

    Where the kernel or the file system cannot do it at once, a file is linked and unlinked. A
    folder is renamed after a look, which replaces an empty folder made in between, and no more.
    """
    if _renameat2(src, dst, NOREPLACE):
        return
    if os.path.lexists(dst):
        raise _taken(dst)
    if src.is_dir() and not src.is_symlink():
        try:
            src.rename(dst)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(dst) from error
            raise
        return
    try:
        dst.hardlink_to(src)
    except OSError as error:
        if error.errno not in (errno.EPERM, *UNSUPPORTED):
            raise
        src.rename(dst)  # a file system without links
    else:
        src.unlink()


def exchange(a: Path, b: Path) -> None:
    """Swap two names, whatever they are of. After an error of the system both are as they were.

    Where that cannot be done at once, ``b`` is absent for an instant, and what it named lies
    beside ``a`` under the name of `aside`.
    """
    if _renameat2(a, b, EXCHANGE):
        return
    old = aside(a)
    try:
        b.rename(old)
        a.rename(b)
        old.rename(a)
    except BaseException:  # an interrupt may have come after the rename that it broke into
        if os.path.lexists(old):
            if os.path.lexists(b):
                b.rename(a)
            old.rename(b)
        raise


def aside(path: Path) -> Path:
    """Return where a swap that a kill cuts short leaves what was replaced."""
    return path.with_name(ASIDE)


def _renameat2(src: Path, dst: Path, flag: int) -> bool:
    """Call the kernel; whether it knows how. Raises the `OSError` of a rename that fails."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False  # another system, or an older C library
    names = os.fsencode(src), os.fsencode(dst)
    if call(AT_FDCWD, names[0], AT_FDCWD, names[1], ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(src), None, str(dst))


def _taken(dst: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(dst))
