"""A disk that loses power: what was written to a file since it was last synced may be gone."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# Bound before anything is interposed: what happens to a disk in a power cut is no step.
_open, _close, _pwrite, _ftruncate = os.open, os.close, os.pwrite, os.ftruncate
_rename = os.rename

CUTS = ("lost", "zeros", "pages", "last", "undone")
"""What a cut leaves of unsynced data: nothing; zeros; half of the pages; all but the end of the
file that was written last; nothing, and renames whose folder was not synced never happened."""

PAGE = 4096


@dataclass
class File:
    """What is known of a file's data since the command began."""

    kept: int
    """The size that it has after a cut."""
    unsynced: list[tuple[int, int]] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)
    turn: int = 0
    """When it was last written, as a number that grows."""


class Rename(NamedTuple):
    """A change of names that waits for its folder to be synced."""

    source: str
    target: str
    swapped: bool
    """Whether the two exchanged their names."""
    final: bool
    """Whether something was replaced, which a simulation cannot bring back."""


class Disk:
    """What has reached the disk of all that a process wrote. Names are kept, unless `undone`."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], File] = {}
        self._renames: list[Rename] = []
        self._turns = 0

    def opened(self, descriptor: int, *, created: bool, emptied: bool) -> None:
        """Begin to follow a file that was opened for writing."""
        about = os.fstat(descriptor)
        key = about.st_dev, about.st_ino  # which an earlier, removed file may have had, too
        if created or key not in self._files:
            self._files[key] = File(about.st_size)
        elif emptied:
            self._files[key] = File(0, written=[])

    def wrote(self, descriptor: int, start: int, count: int) -> None:
        """Remember bytes that are on their way to the disk."""
        if (file := self._of(descriptor)) and count > 0:
            file.unsynced.append((start, start + count))
            file.written.append((start, start + count))
            self._turns += 1
            file.turn = self._turns

    def synced(self, descriptor: int) -> None:
        """Take what was written to a file, or renamed into a folder, as safe."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._renames = [each for each in self._renames if os.path.dirname(each.target) != path]
        if file := self._of(descriptor):
            file.kept, file.unsynced = os.fstat(descriptor).st_size, []

    def renamed(self, source: str, target: str, *, swapped: bool, final: bool) -> None:
        """Remember a change of names."""
        self._renames.append(Rename(source, target, swapped, final))

    def cut(self, roots: Sequence[str], way: str, seed: int) -> None:
        """Do to the files under some folders what a power cut may do, in a way of `CUTS`."""
        dice = random.Random(seed)
        found = [(path, file) for path, file in self._below(roots) if file.unsynced]
        if way == "last":  # the kernel has had the time to write everything else
            found = sorted(found, key=lambda each: each[1].turn)[-1:]
        for path, file in found:
            descriptor = _open(path, os.O_WRONLY)
            size = os.fstat(descriptor).st_size
            for start, stop in file.unsynced:
                if way == "last":
                    start = max(start, min(PAGE, size // 2))
                for page in range(start, min(stop, size), PAGE):
                    if way != "pages" or dice.random() < 0.5:
                        _pwrite(descriptor, bytes(min(page + PAGE, stop, size) - page), page)
            if way in ("lost", "undone"):
                _ftruncate(descriptor, min(size, file.kept))
            _close(descriptor)
        if way == "undone":
            self._undo()

    def unaccounted(self, roots: Sequence[str]) -> list[str]:
        """Return the files with bytes that were written past the interposer."""
        return [path for path, file in self._below(roots) if _covered(file) < os.stat(path).st_size]

    def seen(self, roots: Sequence[str]) -> list[str]:
        """Return the files that were written, of those that are there."""
        return [path for path, _ in self._below(roots)]

    def _of(self, descriptor: int) -> File | None:
        about = os.fstat(descriptor)
        return self._files.get((about.st_dev, about.st_ino))

    def _below(self, roots: Sequence[str]) -> Iterator[tuple[str, File]]:
        for root in roots:
            for folder, _, names in os.walk(root):
                for name in names:
                    path = os.path.join(folder, name)
                    about = os.lstat(path)
                    if file := self._files.get((about.st_dev, about.st_ino)):
                        yield path, file

    def _undo(self) -> None:
        """Take back the last renames, up to one that cannot be: a journal loses only its end."""
        for source, target, swapped, final in reversed(self._renames):
            if final or not os.path.lexists(target) or os.path.lexists(source) != swapped:
                return
            if swapped:
                aside = f"{source}.swap"
                _rename(source, aside)
                _rename(target, source)
                _rename(aside, target)
            elif Path(source).parent.is_dir():
                _rename(target, source)


def _covered(file: File) -> int:
    """Return how many bytes were written at least once."""
    covered = end = 0
    for start, stop in sorted(file.written):
        covered += max(stop - max(start, end), 0)
        end = max(end, stop)
    return covered
