"""Where inputs lie: a path of this machine, or a place elsewhere that is asked the same way."""

from collections.abc import Hashable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Protocol, TypeAlias


class Remote(Hashable, Protocol):
    """A file or folder that is not on this machine, and never changes where it is.

    What a `Path` answers too has the same name as there. It hashes, its text is its address, and it
    pickles as that. Nothing can be written to it.
    """

    @property
    def name(self) -> str:
        """Its last part."""
        ...

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        ...

    @property
    def parent(self) -> "Remote":
        """The folder that it is in."""
        ...

    def __truediv__(self, name: str, /) -> "Remote":
        """Return what has this name in the folder, whether or not it is there."""
        ...

    def absolute(self) -> "Remote":
        """Return itself: it is the same from everywhere."""
        ...

    def exists(self) -> bool:
        """Whether it is there."""
        ...

    def is_file(self) -> bool:
        """Whether it is a file."""
        ...

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        ...

    def iterdir(self) -> Iterator["Remote"]:
        """Yield what is in the folder."""
        ...

    def size(self) -> int:
        """Return the bytes of a file; `FileNotFoundError` if it is none."""
        ...

    def sha256(self) -> str | None:
        """Return the SHA-256 of a file's content, where it is known without reading it."""
        ...

    def open(self) -> IO[bytes]:
        """Open a file for reading in binary, from any position; what is not read may stay there."""
        ...

    def fetch(self) -> Path:
        """Return the whole file on this machine, fetched now unless it is here."""
        ...

    def is_here(self) -> bool:
        """Whether `fetch` has nothing to do."""
        ...

    def evict(self) -> None:
        """Remove what `fetch` has brought."""
        ...


Location: TypeAlias = Path | Remote
"""What every reader of files takes; only this package asks which of the two it is."""


def local(file: Location) -> Path:
    """Return the path of a file on this machine, fetched if it lies elsewhere."""
    return file if isinstance(file, Path) else file.fetch()


def size_of(file: Location) -> int:
    """Return the bytes of a file; `OSError` if there is none."""
    return file.stat().st_size if isinstance(file, Path) else file.size()


def known_sha256(file: Location) -> str | None:
    """Return the SHA-256 of a file's content where it is known without reading the file."""
    return None if isinstance(file, Path) else file.sha256()


def entries(folder: Location, pattern: str = "*") -> list[Location]:
    """Return what is in a folder and has a name that fits a pattern, in the order of the names."""
    found = [entry for entry in folder.iterdir() if fnmatchcase(entry.name, pattern)]
    return sorted(found, key=lambda entry: entry.name)
