"""Paths into the Hub: they look and read like local ones, and a file is fetched when opened."""

import io
import os
import re
import stat
import sys
from collections.abc import Generator, Iterator
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path, PosixPath
from typing import IO, TYPE_CHECKING, Any

from lora_tools.errors import HubError, some

if TYPE_CHECKING:
    from lora_tools.hub import Snapshot

SCHEMES = ("hf://", "https://huggingface.co/", "https://hf.co/")
BARE = re.compile(r"\w[\w.-]*/\w[\w.-]*(@(refs/pr/\d+|[^/\s]+))?")
"""``org/name`` or ``org/name@revision``, as people write it."""

AHEAD = 1 << 15
"""Bytes that one request for a header brings: most headers are smaller."""

SELDOM = 8
"""Openings after which a file is downloaded rather than read by ranges."""

TIMES = {f"st_{kind}time{unit}": 0 for kind in "amc" for unit in ("", "_ns")}
"""A commit does not change, so its files have no times."""


class RemotePath(PosixPath):
    """A file or folder of a repository at one commit.

    Questions about it are answered from the commit's list of files. `open` reads a safetensors
    file that is not in the cache by ranges, so that a header costs a header; whoever needs a true
    file (`os.fspath`, so also `os.open` and `shutil`) gets the cache's, downloaded first. Its own
    text is the cache's path, shown is the ``hf://`` address.
    """

    snapshot: "Snapshot"
    file: str
    """Its path in the repository; empty for the repository itself."""

    def __new__(cls, snapshot: "Snapshot", file: str = "") -> "RemotePath":
        """Return the path of a file in a repository; its own text is the cache's path."""
        self = super().__new__(cls, snapshot.folder / file)
        self.snapshot = snapshot
        self.file = file
        return self

    def __init__(self, snapshot: "Snapshot", file: str = "") -> None:
        if sys.version_info >= (3, 12):
            super().__init__(snapshot.folder / file)

    def with_segments(self, *segments: Any) -> Path:
        """Return a plain path: what is derived in other ways than by name leaves the repository."""
        return Path(*segments)

    if sys.version_info < (3, 12):

        @classmethod
        def _from_parsed_parts(cls, *parts: Any) -> Any:
            # pathlib's own way to what it derives before 3.12: private, so typeshed has it not.
            return Path._from_parsed_parts(*parts)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.snapshot.repo, self.snapshot.commit, self.file)

    def __str__(self) -> str:
        return f"{self.snapshot}/{self.file}" if self.file else str(self.snapshot)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        from lora_tools import hub

        names = [self.file] if self.is_file() else [path.file for path in self._walk()]
        if not names:
            raise FileNotFoundError(f"{self}: no such file in the repository")
        for name in names:
            hub.fetch(self.snapshot, name)
        return str(self.snapshot.folder / self.file)

    def __truediv__(self, name: Any) -> "RemotePath":
        return self.joinpath(name)

    def joinpath(self, *names: Any) -> "RemotePath":
        """Return a path in this folder."""
        parts = [part for name in names for part in str(name).split("/") if part not in ("", ".")]
        return RemotePath(self.snapshot, "/".join([self.file, *parts] if self.file else parts))

    @property
    def parent(self) -> "RemotePath":
        """The folder that it is in; the repository's own is its own parent."""
        return RemotePath(self.snapshot, self.file.rpartition("/")[0])

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return its kind and size."""
        if self.file in self.snapshot.files:
            mode, size = stat.S_IFREG | 0o444, self.snapshot.files[self.file].size
        elif any(True for _ in self._walk()):
            mode, size = stat.S_IFDIR | 0o555, 0
        else:
            raise FileNotFoundError(f"{self}: no such file in the repository")
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0), TIMES)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the commit has it."""
        return self.is_file() or self.is_dir()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file."""
        return self.file in self.snapshot.files

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder."""
        return not self.is_file() and any(True for _ in self._walk())

    def is_symlink(self) -> bool:
        """Whether it is a link: the Hub has none."""
        return False

    def iterdir(self) -> Generator["RemotePath", None, None]:
        """Yield what is in this folder."""
        skip = len(self._prefix)
        names = dict.fromkeys(path.file[skip:].partition("/")[0] for path in self._walk())
        return (self / name for name in names)

    def glob(self, pattern: str, **options: Any) -> Generator["RemotePath", None, None]:
        """Yield what is in this folder and fits a pattern without slashes."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    # Not a path of its own kind, as pathlib promises: the plain one leaves the repository.
    def resolve(self, strict: bool = False) -> Path:  # type: ignore[override]
        """Return the plain path that it has, or would have, in the cache: the same in every run."""
        return self.snapshot.folder.resolve() / self.file

    # One signature for pathlib's overloads, which tell the kinds of files apart by their modes.
    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open it for reading."""
        if set(mode) & set("wax+"):
            raise PermissionError(f"{self}: lies on the Hub; use `lora-tools push` to write there")
        partial = self.suffix == ".safetensors" and "b" in mode and self.is_file()
        if partial and not self.is_here() and self._is_seldom_opened():
            return io.BufferedReader(Ranged(self), AHEAD)
        return Path(os.fspath(self)).open(mode, buffering, encoding, errors, newline)

    def is_here(self) -> bool:
        """Whether the cache has it."""
        from lora_tools import hub

        return hub.is_cached(self.snapshot, self.file)

    def evict(self) -> None:
        """Remove it from the cache again."""
        from lora_tools import hub

        hub.evict(self.snapshot, self.file)

    def _is_seldom_opened(self) -> bool:
        """Count an opening; from some number on, having the whole file costs less."""
        self.snapshot.openings[self.file] += 1
        return self.snapshot.openings[self.file] <= SELDOM

    @property
    def _prefix(self) -> str:
        return f"{self.file}/" if self.file else ""

    def _walk(self) -> Iterator["RemotePath"]:
        for name in self.snapshot.files:
            if name.startswith(self._prefix):
                yield RemotePath(self.snapshot, name)


class Ranged(io.RawIOBase):
    """A file of a repository that is read piece by piece, each by a request of its own."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._position = path, 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position and return it."""
        starts = (0, self._position, self._path.stat().st_size)
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position on, or a part of it."""
        from lora_tools import hub

        view, start = memoryview(buffer).cast("B"), self._position
        if start < AHEAD:
            data = _beginning(self._path)[start : start + len(view)]
        else:
            stop = max(start, min(start + len(view), self._path.stat().st_size))
            data = hub.read_range(self._path.snapshot, self._path.file, start, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@lru_cache(maxsize=512)  # a command may open a header twice
def _beginning(path: RemotePath) -> bytes:
    from lora_tools import hub

    return hub.read_range(path.snapshot, path.file, 0, min(AHEAD, path.stat().st_size))


def is_remote(text: str) -> bool:
    """Whether a command's argument means the Hub: what exists here does not.

    >>> is_remote("hf://org/name"), is_remote("org/name@v1"), is_remote("./org/name")
    (True, True, False)
    """
    if text.startswith(SCHEMES):
        return True
    return bool(BARE.fullmatch(text)) and not os.path.lexists(text)


def locate(text: str | Path) -> Path:
    """Return the path that a text means: a local one, or one on the Hub, pinned to its commit.

    ``hf://org/name[@revision][/file]`` is on the Hub; so is a bare ``org/name[@revision]`` unless
    there is such a path here. Costs two requests, and none for what is local. Raises `HubError`.
    """
    if isinstance(text, Path) or not is_remote(text):
        return Path(text) if isinstance(text, str) else text
    from lora_tools import hub

    bare = not text.startswith(SCHEMES)
    address = hub.parse(f"hf://{text}" if bare else text)
    try:
        path = RemotePath(_snapshot(address.repo, address.revision), address.file.strip("/"))
    except HubError as error:
        if bare:
            error.add_note(f"There is no local file or folder {text} either.")
        raise
    if not path.exists():
        raise HubError(f"{path}: no such file in the repository").hint(
            f"It has {some(path.snapshot.files)}."
        )
    return path


def _again(repo: str, commit: str, file: str) -> RemotePath:
    """Return the path that another process has; the commit's files are listed once."""
    return RemotePath(_snapshot(repo, commit), file)


@cache  # one command sees one commit, however often it names the repository
def _snapshot(repo: str, revision: str | None) -> "Snapshot":
    from lora_tools import hub

    return hub.snapshot(repo, revision)
