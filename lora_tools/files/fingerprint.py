"""Fingerprints: what tells that a file is still the one that it was, without reading it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from lora_tools.errors import CheckpointError

Fingerprint: TypeAlias = list[str | int]


def fingerprint(file: Path) -> Fingerprint:
    """Return a file's place, size and time of change, as JSON can hold them."""
    state = file.stat()
    return [str(file.resolve()), state.st_size, state.st_mtime_ns]


def state(files: Iterable[Path]) -> str:
    """Return a digest of the sizes and times of change of files, wherever they are mounted.

    One that is not there counts as such. Costs a question to the file system per file.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            found = file.stat()
        except OSError:
            digest.update(b"none;")
        else:
            digest.update(f"{found.st_size},{found.st_mtime_ns};".encode())
    return digest.hexdigest()


def check_state(path: Path, found: str, expected: str) -> None:
    """Raise `CheckpointError` unless a file that is opened again is as it was."""
    if found != expected:
        raise CheckpointError(f"{path}: has changed since it was first opened").hint(
            "Run the command again, when nothing writes to it."
        )
