"""A command's process: made fast to begin, to compute in, to be stopped, and to leave."""

import ctypes
import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# malloc.h of glibc
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

ENDS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """The system asks the process to end: what is unfinished is cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.status = 128 + number
        """What a shell says of a process that a signal has ended."""


def prepare() -> None:
    """Set the process up. Called before anything that computes is imported."""
    _stop_by_unwinding()
    # Imports allocate a million objects that stay: collecting among them finds nothing.
    gc.set_threshold(100_000)
    # Modules are computed side by side; numpy reads this when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Buffers of a megabyte come and go by the thousand. Given back to the kernel each time, their
    # page faults take a tenth of a shrink.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library has no such setting
    mallopt(MMAP_THRESHOLD, 1 << 25)
    mallopt(TRIM_THRESHOLD, 1 << 28)


def leave(status: int) -> NoReturn:
    """End the process at once.

    Everything is written and closed by now; taking torch apart again would cost half a second.
    """
    for number in (signal.SIGINT, *ENDS):
        signal.signal(number, signal.SIG_IGN)  # it ends anyway, and its status is true
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _stop_by_unwinding() -> None:
    """Let signals that end the process unwind it first. What somebody ignores stays ignored."""
    for number in ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwind the main thread; while it does so, end at once if a person insists."""
    for other in ENDS:  # a terminal that closes sends SIGHUP twice
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _leave)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)
