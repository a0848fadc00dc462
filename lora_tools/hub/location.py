"""Files on the Hub: known from the listing of their commit, read by ranges or from the cache."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lora_tools.errors import HubError, some
from lora_tools.hub import SCHEMES
from lora_tools.hub.address import parse
from lora_tools.hub.reading import Blob, Snapshot, evict, fetch, is_cached, read_range, snapshot

AHEAD = 1 << 15
"""Bytes that one request for a header brings: most headers are smaller."""

SELDOM = 8
"""Openings after which a file is downloaded rather than read by ranges."""


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A file or folder of a repository at one commit: `files.location.Remote`, on the Hub.

    Questions about it cost no request. Its text is the ``hf://`` address.
    """

    snapshot: Snapshot
    file: str = ""
    """Its path in the repository; empty for the repository itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.snapshot.repo, self.snapshot.commit, self.file)

    def __str__(self) -> str:
        return f"{self.snapshot}/{self.file}" if self.file else str(self.snapshot)

    def __truediv__(self, name: str) -> "HubLocation":
        parts = [part for part in name.split("/") if part not in ("", ".")]
        return HubLocation(self.snapshot, "/".join([self.file, *parts] if self.file else parts))

    @property
    def name(self) -> str:
        """Its last part, in the end that of the repository."""
        return (self.file or self.snapshot.repo).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "HubLocation":
        """The folder that it is in; the repository's own is its own parent."""
        return HubLocation(self.snapshot, self.file.rpartition("/")[0])

    def absolute(self) -> "HubLocation":
        """Return itself: it is the same from everywhere."""
        return self

    def exists(self) -> bool:
        """Whether the commit has it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.file in self.snapshot.files

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return not self.is_file() and any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator["HubLocation"]:
        """Yield what is in this folder."""
        before = f"{self.file}/" if self.file else ""
        below = (file for file in self.snapshot.files if file.startswith(before))
        names = dict.fromkeys(file[len(before) :].partition("/")[0] for file in below)
        return (self / name for name in names)

    def size(self) -> int:
        """Return the bytes of a file; `FileNotFoundError` if it is none."""
        return self._blob().size

    def sha256(self) -> str | None:
        """Return the SHA-256 of a large file's content: the Hub keeps none of a small one's."""
        return self._blob().sha256

    def open(self) -> IO[bytes]:
        """Open a file for reading in binary.

        A safetensors file that is not in the cache is read by ranges, so that a header costs a
        header; whatever else is opened, or is opened often, is downloaded first.
        """
        if self.suffix == ".safetensors" and not self.is_here() and self._is_seldom_opened():
            return io.BufferedReader(Ranged(self), AHEAD)
        return self.fetch().open("rb")

    def fetch(self) -> Path:
        """Return the file in the cache, downloaded now unless it is there."""
        self._blob()
        return fetch(self.snapshot, self.file)

    def is_here(self) -> bool:
        """Whether the cache has its content."""
        self._blob()
        return is_cached(self.snapshot, self.file)

    def evict(self) -> None:
        """Remove it from the cache again."""
        evict(self.snapshot, self.file)

    def _blob(self) -> Blob:
        try:
            return self.snapshot.files[self.file]
        except KeyError:
            raise FileNotFoundError(f"{self}: no such file in the repository") from None

    def _is_seldom_opened(self) -> bool:
        """Count an opening; from some number on, having the whole file costs less."""
        self.snapshot.openings[self.file] += 1
        return self.snapshot.openings[self.file] <= SELDOM


class Ranged(io.RawIOBase):
    """A file of a repository that is read piece by piece, each by a request of its own."""

    def __init__(self, location: HubLocation) -> None:
        self._location, self._size, self._position = location, location.size(), 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position and return it."""
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position on, or a part of it."""
        view, start = memoryview(buffer).cast("B"), self._position
        if start < AHEAD:
            data = _beginning(self._location)[start : start + len(view)]
        else:
            stop = min(start + len(view), self._size)
            data = read_range(self._location.snapshot, self._location.file, start, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@lru_cache(maxsize=512)  # a command may open a header twice
def _beginning(location: HubLocation) -> bytes:
    return read_range(location.snapshot, location.file, 0, min(AHEAD, location.size()))


def pinned(text: str) -> HubLocation:
    """Return what an address on the Hub leads to, pinned to its commit.

    Costs two requests for each repository. Raises `HubError` if there is none, or no such file.
    """
    bare = not text.startswith(SCHEMES)
    address = parse(f"hf://{text}" if bare else text)
    try:
        location = _again(address.repo, address.revision, address.file.strip("/"))
    except HubError as error:
        if bare:
            error.add_note(f"There is no local file or folder {text} either.")
        raise
    if not location.exists():
        raise HubError(f"{location}: no such file in the repository").hint(
            f"It has {some(location.snapshot.files)}."
        )
    return location


def _again(repo: str, revision: str | None, file: str) -> HubLocation:
    return HubLocation(snapshot(repo, revision), file)
