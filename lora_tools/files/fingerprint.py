"""Fingerprints: what tells that a file is still the one that it was, without reading it."""

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
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            found.append(_state(file))
        except OSError:
            found.append(None)
    # Of whole numbers Python's own hash is the same in every process, and to load hashlib takes
    # longer than to read a header.
    numbers = (len(found), *(number for entry in found for number in entry or (-1, -1)))
    return f"{hash(numbers) % (1 << 64):016x}"


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
