"""The work in progress for an output: a hidden folder beside it, of a fixed name, and locked.

A process that is killed leaves the folder behind, and the kernel frees the lock. The next one that
has the same output takes the folder over.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from lora_tools.errors import OutputError
from lora_tools.files.disk import sync
from lora_tools.files.renames import aside, rename_exclusive

LOCK, OUT = "lock", "out"
ENDING = ".partial"
NAME_MAX = 255
ATTEMPTS = 3


@dataclass(slots=True)
class Work:
    """A locked folder, readable by nobody else, in which an output is made."""

    asked: Path
    """The output as it was asked for, which messages name."""
    out: Path
    folder: Path
    lock: int
    """A descriptor of the lock."""
    kept: bool
    """Whether the folder stays at the end, for the next run to resume."""

    @property
    def place(self) -> Path:
        """Where the output is made, under its own ending."""
        return self.folder / f"{OUT}{self.out.suffix}"

    @property
    def resting(self) -> Path:
        """What a swap that was cut short has left of an output that was there before."""
        return aside(self.place)

    def restore(self) -> None:
        """Give an output that was there before its name back, if no other has it."""
        if os.path.lexists(self.resting) and not os.path.lexists(self.out):
            rename_exclusive(self.resting, self.out)
            sync(self.out.parent)

    def clear(self) -> None:
        """Remove everything in the folder but the lock."""
        self.restore()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                discard(path)

    def remove(self) -> None:
        """Remove the folder as far as the system lets it; the next run takes over what stays.

        Can be called again, wherever the first call was interrupted.
        """
        for _ in range(ATTEMPTS):  # a thread that was not waited for may have made a file meanwhile
            with suppress(OSError):
                if _is(self.lock, self.folder / LOCK):  # else the folder may be another's by now
                    self.clear()
                    (self.folder / LOCK).unlink()
                self.folder.rmdir()
                return


@contextmanager
def working(out: Path, *, kept: bool = False) -> Iterator[Work]:
    """Yield the locked folder of an output, and remove it at the end unless it is ``kept``.

    Raises `OutputError` while another process has it, or if it is not one of ours.
    """
    place = located(out)
    make_folder(place.parent)
    work = _lock(out, place, kept=kept)
    try:
        work.restore()
        yield work
    finally:
        try:
            if not work.kept:
                work.remove()
        except BaseException:  # a signal, which comes but once
            if not work.kept:
                work.remove()
            raise
        finally:
            os.close(work.lock)


def partial(out: Path) -> Path:
    """Return the folder of the work in progress for an output.

    >>> partial(Path("models/small")).as_posix()
    'models/.small.partial'
    """
    name = f".{out.name}{ENDING}"
    try:
        most = os.pathconf(out.parent, "PC_NAME_MAX")
    except (OSError, ValueError):
        most = NAME_MAX
    data = os.fsencode(out.name)
    if len(data) + len(ENDING) + 1 > most:
        import hashlib  # takes longer than to read a header, and few names are as long

        mark = "~" + hashlib.sha256(data).hexdigest()[:12]
        start = data[: most - len(ENDING) - len(mark) - 1].decode("utf-8", "ignore")
        name = f".{start}{mark}{ENDING}"
    return out.parent / name


def located(out: Path) -> Path:
    """Return an output's path with a name of its own, so that it can be given to another file.

    Links on the way are followed; one that is the output itself is not.
    """
    try:
        place = out if out.name not in ("", "..") else out.resolve()
        place = place.parent.resolve() / place.name
    except (OSError, RuntimeError) as error:  # Python before 3.13 raises the latter
        raise OutputError(f"{out}: symbolic links on the way lead in a circle") from error
    if not place.name:
        raise OutputError(f"{out}: is no place for an output")
    return place


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and bring their names to the disk."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputError(f"{folder}: is a file, and a folder is needed there") from error
        sync(path.parent)


def discard(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _lock(out: Path, place: Path, *, kept: bool) -> Work:
    """Make the folder of an output if it is not there, and lock it."""
    folder = partial(place)
    while True:
        lock = None
        try:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                _check_ours(folder)
            try:
                lock, new = _opened(folder / LOCK)
            except FileNotFoundError:
                continue  # its owner has just removed it
            _take(lock, folder, out, new=new)
            if _is(lock, folder / LOCK):
                return Work(out, place, folder, lock, kept)
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if not isinstance(error, OutputError):  # then it is somebody else's
                _abandon(folder)
            raise
        os.close(lock)  # its owner has removed it before we had it


def _abandon(folder: Path) -> None:
    """Remove a folder that holds nothing but a lock that nobody has.

    What was interrupted is not known: the folder, or its lock, may have been there before.
    """
    with suppress(OSError):
        _check_ours(folder)
        with suppress(FileNotFoundError):
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(lock, folder / LOCK) and all(path.name == LOCK for path in folder.iterdir()):
                    (folder / LOCK).unlink()
            finally:
                os.close(lock)
        folder.rmdir()


def _check_ours(folder: Path) -> None:
    """Raise `OutputError` unless a folder may be taken over: an empty one, or one with a lock."""
    try:
        state = folder.lstat()
        if S_ISDIR(state.st_mode) and state.st_uid == os.geteuid():
            names = {path.name for path in folder.iterdir()}
            if not names or LOCK in names:
                return
    except FileNotFoundError:
        return
    raise OutputError(f"{folder}: is in the way, and is no unfinished output of yours").hint(
        "Move it away, or choose another output path."
    )


def _opened(path: Path) -> tuple[int, bool]:
    """Return a descriptor of a file, and whether it is new."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError:
        return os.open(path, flags), False


def _take(lock: int, folder: Path, out: Path, *, new: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputError(f"{out}: is being written by another process") from None
        if not new:  # a file system without locks: the file itself is the lock
            raise OutputError(
                f"{folder}: another process writes there, or was killed ({error.strerror})"
            ).hint("If none is running, remove this folder.") from error


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
