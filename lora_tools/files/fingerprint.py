"""Fingerprints: what tells that a file is still the one that it was, without reading it."""

from pathlib import Path
from typing import TypeAlias

Fingerprint: TypeAlias = list[str | int]


def fingerprint(file: Path) -> Fingerprint:
    """Return a file's place, size and time of change, as JSON can hold them."""
    state = file.stat()
    return [str(file.resolve()), state.st_size, state.st_mtime_ns]
