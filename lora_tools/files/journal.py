"""The finished files of a work in progress, noted so that the next run can trust them."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal, TypeAlias

from lora_tools.errors import OutputError
from lora_tools.files.disk import naming, sync
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.work import LOCK, Work, discard, partial, working
from lora_tools.files.writer import check_free, publish

LOG = "journal"
BLOCK = 1 << 20
SECONDS = 1.0  # of finished work that a kill may cost

Resume: TypeAlias = Literal["or anew", "or refuse", "never"]
"""Whether to resume, and what to do with what was begun for another purpose."""


class Journal:
    """A folder, and a line for every file in it that is finished: size, checksum and a note.

    The name of a file promises nothing, its line does. It is written by a thread of its own, and
    after the file is on the disk, so that the disk works beside the computation; a second's files
    together, so that work of a second never waits for the disk twice.
    """

    def __init__(self, work: Work, done: Mapping[str, Any]) -> None:
        self.place = work.place
        """The folder that becomes the output."""
        self.done = dict(done)
        """What was noted of each finished file."""
        self._folder = work.folder
        self._pending: list[tuple[str, Any]] = []
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1)
        self._mutex = Lock()
        self._hurry = Event()
        self._over = Event()

    def path(self, name: str) -> Path:
        """Return where a file of the folder lies, or is to be written."""
        return self._folder / name

    def finish(self, name: str, note: Any = None) -> None:
        """Remember a file that is whole, with a note; returns at once.

        Raises what an earlier file met on its way to the disk.
        """
        self.done[name] = note
        with self._mutex:
            self._pending.append((name, note))
            earlier = self._writing
            if earlier is None or earlier.done():
                self._writing = self._writer.submit(self._write)
        if earlier is not None and earlier.done():
            earlier.result()

    def settle(self) -> None:
        """Wait until all that is finished is noted, as far as the disk takes it."""
        self._hurry.set()
        self._writer.shutdown()

    def leave(self) -> None:
        """Note nothing more: the output is complete."""
        self._over.set()
        self._hurry.set()
        self._writer.shutdown()
        if self._writing is not None:
            self._writing.result()

    def _write(self) -> None:
        """Note what is finished, a second's files at a time, until no more are."""
        while True:
            self._hurry.wait(SECONDS)
            with self._mutex:
                pending, self._pending = self._pending, []
                if not pending:
                    self._writing = None
                    return
            self._note(pending)

    def _note(self, pending: Iterable[tuple[str, Any]]) -> None:
        lines = []
        for name, note in pending:
            if self._over.is_set():
                return
            sync(self.path(name))
            lines.append(_line(self._folder, name, note))
        _append(self._folder / LOG, lines)


@contextmanager
def journaled(
    out: Path,
    purpose: Mapping[str, Any],
    *,
    force: Force = False,
    resume: Resume = "or anew",
    sources: Iterable[Location] = (),
) -> Iterator[Journal]:
    """Yield a journal whose folder becomes ``out`` when the block succeeds, as with `staged`.

    What is finished stays after a failure or a kill, in a hidden folder beside ``out``, and the
    next call with the same ``purpose`` (all that decides the bytes) resumes there. Each file is
    compared with its checksum first; costs a reading of what is finished. Raises `OutputError` as
    `staged` does, and if what is there has another purpose and ``resume`` is "or refuse".
    """
    check_free(out, force=force)
    with working(out, kept=True) as work:
        journal = Journal(work, _resumed(work, purpose, resume))
        try:
            yield journal
            check_free(out, force=force)  # before what is finished is given up
            journal.leave()
            publish(work, force=force, sources=sources)
        except BaseException:
            journal.settle()
            work.kept = bool(journal.done)
            raise
        work.kept = False


def begun(out: Path) -> int:
    """Return how many bytes of an output an earlier call has left."""
    files = partial(out).glob("out*/**/*")
    return sum(file.stat().st_size for file in files if file.is_file())


def checksum(path: Path, start: int = 0) -> tuple[int, int]:
    """Return the size of a file and its CRC-32.

    It finds what a crash does to a file, at the speed of the memory: nobody forges these files.
    """
    size, crc, buffer = 0, start, memoryview(bytearray(BLOCK))
    with naming(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size, crc = size + count, zlib.crc32(buffer[:count], crc)
    return size, crc


def _line(folder: Path, name: str, note: Any) -> str:
    size, crc = checksum(folder / name)
    return json.dumps({"file": name, "size": size, "crc32": _with(crc, name, note), "note": note})


def _with(crc: int, name: str, note: Any) -> int:
    """Return a checksum that covers the line, too."""
    return zlib.crc32(json.dumps([name, note]).encode(), crc)


def _append(log: Path, lines: list[str]) -> None:
    with naming(log), log.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _resumed(work: Work, purpose: Mapping[str, Any], resume: Resume) -> dict[str, Any]:
    """Return what is finished and sound, in a folder without anything else."""
    lines = _lines(work.folder / LOG) if resume != "never" else []
    entries: list[Any] = []
    if lines and isinstance(lines[0], dict) and "purpose" in lines[0]:
        if lines[0]["purpose"] == json.loads(json.dumps(purpose)):
            entries = lines[1:]
        elif resume == "or refuse":
            raise _other(work.folder, lines[0]["purpose"], purpose)
    with ThreadPoolExecutor(4) as pool:
        sound = list(pool.map(lambda entry: _is_sound(work.folder, entry), entries))
    done = {entry["file"]: entry for entry, good in zip(entries, sound, strict=True) if good}
    _sweep(work, done)
    _begin(work.folder / LOG, purpose, done.values())
    return {name: entry["note"] for name, entry in done.items()}


def _lines(log: Path) -> list[Any]:
    """Return the lines of a journal up to the first one that a crash has cut or blanked."""
    try:
        text = log.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for line in text:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _is_sound(folder: Path, entry: Any) -> bool:
    """Whether a file is still what its line says."""
    try:
        name, note = entry["file"], entry["note"]
        size, crc = checksum(folder / name)
        return bool(size == entry["size"] and _with(crc, name, note) == entry["crc32"])
    except (OSError, LookupError, TypeError):
        return False


def _sweep(work: Work, done: Mapping[str, Any]) -> None:
    """Remove what is not finished, and make the folder of the output."""
    work.restore()
    keep = {work.folder / name for name in done}
    for path in work.folder.iterdir():
        if path.name in (LOCK, LOG):
            continue
        if path.is_symlink() or not path.is_dir():
            discard(path)
            continue
        for inner in sorted(path.rglob("*"), reverse=True):  # a folder after what is in it
            if inner in keep:
                continue
            if inner.is_symlink() or not inner.is_dir() or not any(inner.iterdir()):
                discard(inner)
    work.place.mkdir(exist_ok=True)


def _begin(log: Path, purpose: Mapping[str, Any], entries: Iterable[Any]) -> None:
    new = log.with_suffix(".new")
    _append(new, [json.dumps({"purpose": purpose}), *map(json.dumps, entries)])
    new.replace(log)


def _other(folder: Path, theirs: Any, ours: Mapping[str, Any]) -> OutputError:
    found = theirs if isinstance(theirs, dict) else {}
    changed = [key for key in ours if found.get(key) != json.loads(json.dumps(ours[key]))]
    message = f"{folder}: was begun with other {', '.join(changed) or 'settings'}"
    return OutputError(message).hint(
        "Repeat that command to resume it, or start over: --no-resume."
    )
