"""Every error that lora-tools raises on purpose.

::

    LoraToolsError
    ├── CheckpointError   (ValueError)           the bytes are not a valid checkpoint
    ├── FormatError       (ValueError)           an adapter contradicts itself, or is in no format
    ├── UnsupportedError  (NotImplementedError)  understood, and refused with the reason
    ├── NonFiniteError    (ArithmeticError)      NaN, Inf, or a norm that cannot be squared
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

from lora_tools.text import label


class LoraToolsError(Exception):
    """The root: everything a caller may want to catch and show."""

    points: tuple[str, ...] = ()
    """What the message lists, a line each."""

    def __str__(self) -> str:
        return "\n  ".join([self.title, *self.points])

    @property
    def title(self) -> str:
        """The message without what it lists."""
        return super().__str__()

    def listing(self, points: Iterable[str], most: int | None = None) -> Self:
        """Attach what the message lists, up to ``most`` and a count, and return the error.

        Apart from the message, so that no name in it can begin a line of its own.
        """
        found = tuple(points)
        more = len(found) - (len(found) if most is None else most)
        self.points = (*found[:most], f"and {more} more") if more > 0 else found
        return self

    def hint(self, text: str) -> Self:
        """Attach what to do about it and return the error, so that it can be raised in one line."""
        self.add_note(text)
        return self

    def located(self, place: object) -> Self:
        """Return the same error with the place where it arose before its words."""
        error = type(self)(f"{place}: {self.title}")
        error.points = self.points
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
    """A tensor holds NaN or Inf, or numbers whose squares float64 cannot hold."""


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


def suggestion(word: str, words: Iterable[str]) -> str:
    """Return the question whether a word that is like this one was meant; "" if none is.

    >>> suggestion("kohia", ["peft", "kohya"]), suggestion("x", ["peft"])
    ("Did you mean 'kohya'? ", '')
    """
    from difflib import get_close_matches  # asked for in errors only

    near = get_close_matches(word, list(words), n=1, cutoff=0.7)
    return f"Did you mean {near[0]!r}? " if near else ""


def some(items: Iterable[object], most: int = 5) -> str:
    """Name up to ``most`` of the items, as they can be shown, and count the others.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(items)
    shown = ", ".join(map(label, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
