"""Fingerprints: what tells that a file is still the one that it was, without reading it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from lora_tools.errors import CheckpointError
from lora_tools.files.location import Location

Fingerprint: TypeAlias = list[str | int]


def place(location: Location) -> str:
    """Return where a file or folder lies, the same however it was called."""
    return str(location.resolve() if isinstance(location, Path) else location)


def fingerprint(file: Location) -> Fingerprint:
    """Return a file's place, size and time of change, as JSON can hold them."""
    return [place(file), *_state(file)]


def state(files: Iterable[Location]) -> str:
    """Return a digest of the sizes and times of change of files, wherever they are mounted.

    One that is not there counts as such. Costs a question to the file system per file.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            size, changed = _state(file)
        except OSError:
            digest.update(b"none;")
        else:
            digest.update(f"{size},{changed};".encode())
    return digest.hexdigest()


def check_state(path: Location, found: str, expected: str) -> None:
    """Raise `CheckpointError` unless a file that is opened again is as it was."""
    if found != expected:
        raise CheckpointError(f"{path}: has changed since it was first opened").hint(
            "Run the command again, when nothing writes to it."
        )


def _state(file: Location) -> tuple[int, int]:
    if not isinstance(file, Path):
        return file.size(), 0  # what is at its address does not change
    found = file.stat()
    return found.st_size, found.st_mtime_ns
