"""A command's process: made fast to begin, to compute in, and to leave."""

import ctypes
import gc
import os
import sys
from typing import NoReturn

from lora_tools.cli.streams import guard

# malloc.h of glibc
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Set the process up. Called before anything that computes is imported."""
    guard()
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
    try:
        sys.stdout.flush()  # what a library has printed: ours is flushed by now
    except OSError:
        status = status or 1
    sys.stderr.flush()
    os._exit(status)
