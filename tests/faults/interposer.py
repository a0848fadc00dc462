"""Between the program and the kernel: calls that change a disk are numbered, and can be made fail.

Everything that Python writes goes through `os`, once files opened for writing do so, too.
"""

import builtins
import errno
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faults.disk import Disk
from faults.order import ERRORS, SIGNALS, Order

REAL = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)}, io_open=io.open)

ALLOCATES = {"create", "mkdir", "symlink", "link", "write", "pwrite", "pwritev", "writev"}
ALLOCATES |= {"copy_file_range", "sendfile"}
"""What resumes failing on a disk that is full."""

# Wherever it stands, a wrapper around renameat2(2) goes by one of these names.
EXCLUSIVE, EXCHANGE = "rename_exclusive", "exchange"


class Interposer:
    """Counts the steps of this process, and does at one of them what its order says."""

    def __init__(self, order: Order) -> None:
        self._order, self._fault, self._disk = order, order.fault, Disk()
        self._roots = [os.path.realpath(root) for root in order.roots]
        self._lock = threading.RLock()  # a cut must find no other thread within a write
        self._steps: list[tuple[str, str]] = []
        self._full = False
        self._record = Path(order.desk, "record")
        self._modules = set(sys.modules)

    def install(self) -> None:
        """Put every wrapper in place of what it wraps."""
        for name in ("unlink", "remove", "rmdir", "mkdir", "chmod", "utime"):
            setattr(os, name, self._of_path(name))
        for name in ("rename", "replace", "link"):
            setattr(os, name, self._of_two(name))
        os.symlink = self._symlink
        for name in ("write", "writev", "pwrite", "pwritev"):
            setattr(os, name, self._of_data(name))
        os.open, os.truncate, os.ftruncate = self._open, self._truncate, self._truncate
        os.fsync, os.fdatasync = self._sync("fsync"), self._sync("fdatasync")
        os.copy_file_range, os.sendfile = self._copy_file_range, self._sendfile
        os._exit = self._exit
        io.open = builtins.open = self._io_open
        if not self._order.old_kernel:  # else they are put together from steps
            self._seams()
        if self._order.network:
            for name in ("send", "sendall"):
                setattr(socket.socket, name, self._sent(getattr(socket.socket, name)))

    def _step(
        self, call: str, path: str, act: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        with self._lock:
            number, fault = len(self._steps), self._fault
            self._steps.append((call, path))
            due = fault is not None and fault.step == number
            if self._full and call in ALLOCATES:
                raise _error("ENOSPC", call, path)
            if due and fault.kind == "make":
                due = _make(os.path.join(self._order.place, self._order.out), fault.how)
            if due:
                self._note({"fired": [call, path]})
                if fault.kind == "ENOSPC":
                    self._full = True
                    if half:  # as the kernel does: what there is room for, then the error
                        return half()
                if half and fault.kind in ("die", "EIO"):
                    half()
                if fault.kind in ERRORS:
                    raise _error(fault.kind, call, path)
                if fault.how != "after":
                    self._befall()
            result = act()
            if due and fault.how == "after":
                self._befall()
            return result

    def _befall(self) -> None:
        kind, how = self._fault.kind, self._fault.how
        if kind in SIGNALS:
            os.kill(os.getpid(), getattr(signal, kind))
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind in ("die", "cut"):
            if kind == "cut":
                self._disk.cut(self._roots, how, self._fault.step)
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def _exit(self, status: int) -> None:
        """End the process. A cut may come right after: what was promised has to be there."""
        if self._fault is None:
            self._note(
                {
                    "steps": self._steps,
                    "modules": sorted(set(sys.modules) - self._modules),
                    "unaccounted": self._disk.unaccounted(self._roots),
                    "written": self._disk.seen(self._roots),
                }
            )
        elif self._fault.kind == "cut" and self._fault.step >= len(self._steps):
            self._note({"fired": ["exit", str(status)]})
            self._disk.cut(self._roots, self._fault.how, self._fault.step)
        REAL._exit(status)

    def _note(self, document: dict[str, Any]) -> None:
        line = (json.dumps(document) + "\n").encode()
        descriptor = REAL.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        REAL.write(descriptor, line)
        REAL.close(descriptor)

    def _watches(self, path: str) -> bool:
        return any(path == root or path.startswith(f"{root}/") for root in self._roots)

    # Wrappers: by path, by descriptor, and files of Python's own.

    def _of_path(self, name: str) -> Callable[..., Any]:
        real = getattr(REAL, name)

        def call(path: Any, *more: Any, dir_fd: int | None = None, **options: Any) -> Any:
            where = _path(path, dir_fd)
            if dir_fd is not None:
                options["dir_fd"] = dir_fd
            if not self._watches(where):
                return real(path, *more, **options)
            return self._step(name, where, lambda: real(path, *more, **options))

        return call

    def _of_two(self, name: str) -> Callable[..., Any]:
        real = getattr(REAL, name)

        def call(source: Any, target: Any, **options: Any) -> None:
            old = _path(source, options.get("src_dir_fd"))
            new = _path(target, options.get("dst_dir_fd"))

            def act() -> None:
                final = os.path.lexists(new)
                real(source, target, **options)
                if name != "link":
                    self._disk.renamed(old, new, swapped=False, final=final)

            if not self._watches(new):
                real(source, target, **options)
            else:
                self._step(name, new, act)

        return call

    def _symlink(self, content: Any, path: Any, *more: Any, **options: Any) -> None:
        where = _path(path, options.get("dir_fd"))
        if not self._watches(where):
            REAL.symlink(content, path, *more, **options)
        else:
            self._step("symlink", where, lambda: REAL.symlink(content, path, *more, **options))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = _path(path, dir_fd)
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if not writes or not self._watches(where):
            return REAL.open(path, flags, mode, dir_fd=dir_fd)
        created = bool(flags & os.O_CREAT) and not os.path.exists(where)

        def act() -> int:
            descriptor = REAL.open(path, flags, mode, dir_fd=dir_fd)
            emptied = bool(flags & os.O_TRUNC)
            self._disk.opened(descriptor, created=created, emptied=emptied)
            return descriptor

        return self._step("create" if created else "open", where, act)

    def _of_data(self, name: str) -> Callable[..., int]:
        real = getattr(REAL, name)

        def call(descriptor: int, data: Any, *position: int) -> int:
            where = _where(descriptor)
            if not self._watches(where):
                return real(descriptor, data, *position)

            def act(data: Any) -> int:
                start = position[0] if position else os.lseek(descriptor, 0, os.SEEK_CUR)
                if not position and _appends(descriptor):
                    start = os.fstat(descriptor).st_size
                count = real(descriptor, data, *position)
                self._disk.wrote(descriptor, start, count)
                return count

            part = _half(data)
            half = (lambda: act(part)) if part else None
            return self._step(name, where, lambda: act(data), half)

        return call

    def _truncate(self, path: Any, length: int) -> None:
        where = _path(path, None)
        if not self._watches(where):
            REAL.truncate(path, length)
        else:
            self._step("truncate", where, lambda: REAL.truncate(path, length))

    def _sync(self, name: str) -> Callable[[Any], None]:
        def call(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            where = _where(descriptor)
            if not self._watches(where):
                getattr(REAL, name)(descriptor)
            else:  # a real disk would only make the tests wait
                self._step(name, where, lambda: self._disk.synced(descriptor))

        return call

    def _copy_file_range(
        self, src: int, dst: int, count: int, offset_src: Any = None, offset_dst: Any = None
    ) -> int:
        def act(count: int) -> int:
            start = os.lseek(dst, 0, os.SEEK_CUR) if offset_dst is None else offset_dst
            done = REAL.copy_file_range(src, dst, count, offset_src, offset_dst)
            self._disk.wrote(dst, start, done)
            return done

        return self._copied("copy_file_range", dst, count, act)

    def _sendfile(self, out: int, source: int, offset: Any, count: int) -> int:
        def act(count: int) -> int:
            start = os.lseek(out, 0, os.SEEK_CUR)
            done = REAL.sendfile(out, source, offset, count)
            self._disk.wrote(out, start, done)
            return done

        if not os.path.isfile(_where(out)):  # a socket has no position
            return REAL.sendfile(out, source, offset, count)
        return self._copied("sendfile", out, count, act)

    def _copied(self, name: str, target: int, count: int, act: Callable[[int], int]) -> int:
        where = _where(target)
        if not self._watches(where):
            return act(count)
        half = (lambda: act(count // 2)) if count > 1 else None
        return self._step(name, where, lambda: act(count), half)

    def _io_open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or not self._watches(_path(file, None)):
            return REAL.io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        binary = mode.replace("b", "").replace("t", "")
        opener = opener or (lambda path, flags: os.open(path, flags, 0o666))
        raw = Raw(file, binary, closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, io.text_encoding(encoding), errors, newline)
        text.mode = mode
        return text

    def _seams(self) -> None:
        """Wrap the program's own wrappers of renameat2, wherever their names were imported."""
        for module in [m for name, m in sys.modules.items() if name.startswith("lora_tools.")]:
            for name in (EXCLUSIVE, EXCHANGE):
                real = vars(module).get(name)
                if callable(real) and not hasattr(real, "interposed"):
                    setattr(module, name, self._seam(name, real))

    def _seam(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any) -> Any:
            old, new = _path(source, None), _path(target, None)

            def act() -> Any:
                result = real(source, target)
                self._disk.renamed(old, new, swapped=name == EXCHANGE, final=False)
                return result

            return self._step(name, new, act) if self._watches(new) else real(source, target)

        call.interposed = True
        return call

    def _sent(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(connection: socket.socket, data: Any, *flags: int) -> Any:
            if connection.family == socket.AF_UNIX:
                return real(connection, data, *flags)
            part = _half(data)
            half = (lambda: real(connection, part, *flags)) if part else None
            try:
                return self._step("send", "hub", lambda: real(connection, data, *flags), half)
            except ConnectionResetError:
                connection.shutdown(socket.SHUT_RDWR)  # the other end learns of it, too
                raise

        return call


class Raw(io.FileIO):
    """A file whose writing goes through `os`, where it is a step like any other."""

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)

    def truncate(self, size: int | None = None) -> int:
        length = self.tell() if size is None else size
        os.ftruncate(self.fileno(), length)
        return length


def _error(kind: str, call: str, path: str) -> OSError:
    code = getattr(errno, kind)
    if call in ("write", "writev", "pwrite", "pwritev", "copy_file_range", "sendfile", "fsync"):
        return OSError(code, os.strerror(code))  # calls by descriptor do not know a path
    if call == "send":
        return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return OSError(code, os.strerror(code), path)


def _path(path: Any, folder: int | None) -> str:
    if isinstance(path, int):
        return _where(path)
    text = os.fsdecode(path)
    start = os.getcwd() if folder is None else _where(folder)
    head, tail = os.path.split(os.path.normpath(os.path.join(start, text)))
    return os.path.join(os.path.realpath(head), tail)


def _where(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _appends(descriptor: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)


def _half(data: Any) -> Any:
    """Return the first half of what is to be written, as the same kind of argument."""
    if isinstance(data, list | tuple):
        whole = b"".join(bytes(each) for each in data)
        return [whole[: len(whole) // 2]] if len(whole) > 1 else None
    view = memoryview(data).cast("B")
    return bytes(view[: len(view) // 2]) if len(view) > 1 else None


def _make(out: str, what: str) -> bool:
    """Make what somebody else might put where OUT is to be; whether there was nothing yet."""
    if os.path.lexists(out):
        return False
    if what in ("folder", "empty"):
        REAL.mkdir(out)
    if what == "link":
        REAL.symlink("nowhere", out)
    if what in ("folder", "file"):
        file = os.path.join(out, "theirs") if what == "folder" else out
        with REAL.io_open(file, "w") as opened:
            opened.write("theirs")
    return True
