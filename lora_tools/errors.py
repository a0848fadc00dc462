"""Every error that lora-tools raises on purpose.

::

    LoraToolsError
    ├── CheckpointError   (ValueError)           the bytes are not a valid checkpoint
    ├── FormatError       (ValueError)           an adapter contradicts itself, or is in no format
    ├── UnsupportedError  (NotImplementedError)  understood, and refused with the reason
    ├── NonFiniteError    (ArithmeticError)      NaN or Inf where a number is needed
    ├── ConvergenceError  (ArithmeticError)      a decomposition that does not converge
    ├── PolicyError       (ValueError)           a request that cannot mean anything
    ├── BoundError        (ValueError)           a bound that no result can keep
    ├── OutputError       (FileExistsError)      an output path that must not be written
    ├── DiskError         (OSError)              the disk is full, or fails
    ├── DeviceError       (RuntimeError)         a device that is not there
    ├── PackageError      (ImportError)          an optional package that is not installed
    ├── HubError          (OSError)              the Hub cannot be asked, or refuses
    └── RefusedError      (PermissionError)      what must not be published

Messages read *file: what is wrong*, with names and shapes; what to do about it is a note.
"""

from collections.abc import Iterable
from typing import Self


class LoraToolsError(Exception):
    """The root: everything a caller may want to catch and show."""

    def hint(self, text: str) -> Self:
        """Attach what to do about it and return the error, so that it can be raised in one line."""
        self.add_note(text)
        return self

    def located(self, place: object) -> Self:
        """Return the same error with the place where it arose before its words."""
        error = type(self)(f"{place}: {self}")
        for note in getattr(self, "__notes__", ()):
            error.add_note(note)
        return error


class CheckpointError(LoraToolsError, ValueError):
    """A file is not the checkpoint that it should be."""


class FormatError(LoraToolsError, ValueError):
    """Tensor names, shapes and configuration do not make an adapter."""


class UnsupportedError(LoraToolsError, NotImplementedError):
    """An adapter is understood and cannot be treated as asked.

    A `NotImplementedError` as `io.UnsupportedOperation` is an `OSError`: a caller that knows only
    Python's own errors learns that it is not the input that is wrong.
    """


class NonFiniteError(LoraToolsError, ArithmeticError):
    """A tensor holds NaN or Inf."""


class ConvergenceError(LoraToolsError, ArithmeticError):
    """A matrix whose decomposition does not converge."""


class PolicyError(LoraToolsError, ValueError):
    """A request contradicts itself."""


class BoundError(LoraToolsError, ValueError):
    """A bound on rank, size or error cannot be kept."""


class OutputError(LoraToolsError, FileExistsError):
    """An output path is taken, or lies where it would harm an input."""


class DiskError(LoraToolsError, OSError):
    """The disk is full, or does not take what is written."""


class DeviceError(LoraToolsError, RuntimeError):
    """A device was asked for that this machine does not have."""


class PackageError(LoraToolsError, ImportError):
    """A request needs a package that comes with an extra of lora-tools."""


class HubError(LoraToolsError, OSError):
    """The Hub cannot be reached, lacks what is asked for, or may not give or take it."""


class RefusedError(LoraToolsError, PermissionError):
    """Files hold what their owner would not want to publish."""


def some(items: Iterable[object], most: int = 5) -> str:
    """Name up to ``most`` of the items and count the others.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = [str(item) for item in items]
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
