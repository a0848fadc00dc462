"""The finished files of a work in progress, noted so that the next run can trust them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal, TypeAlias

from lora_tools.errors import OutputError
from lora_tools.files.disk import sync
from lora_tools.files.journal_log import LOG, append, begin_log, is_sound, line, read_log
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.parts import Part, parts
from lora_tools.files.work import LOCK, Work, discard, make_folder, partial, working
from lora_tools.files.writer import check_free, publish

SECONDS = 3.0  # of finished work that a kill may cost
LARGE = 1 << 24
"""Bytes of a file that is brought to the disk at once, so that the end need not wait for it."""

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
        self._syncs: dict[str, Future[None]] = {}
        self._disk = ThreadPoolExecutor(1)
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
        if self.path(name).stat().st_size >= LARGE:
            self._syncs[name] = self._disk.submit(sync, self.path(name))
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
        self._disk.shutdown()

    def close(self) -> None:
        """Wait until all that is finished is noted; raises what the last files met."""
        self.settle()
        for each in (*self._syncs.values(), self._writing):
            if each is not None:
                each.result()

    def leave(self) -> None:
        """Note nothing more: the output is complete."""
        self._over.set()
        self.close()

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
            if name in self._syncs:
                self._syncs[name].result()
            else:
                sync(self.path(name))
            lines.append(line(self._folder, name, note))
        append(self._folder / LOG, lines)


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
    compared with its checksum first; costs a reading of what is finished. What parts of ``out``
    have finished is taken over in the same way. Raises `OutputError` as `staged` does, if what is
    there has another purpose and ``resume`` is "or refuse", and if a part is still being made or
    has another purpose.
    """
    check_free(out, force=force)
    with working(out, kept=True) as work:
        entries = _resumed(work, purpose, resume)
        for place in parts(work.out):
            _take_over(place, work, entries, purpose, resume)
        journal = Journal(work, _notes(entries))
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


@contextmanager
def journaled_part(
    out: Path, part: Part, purpose: Mapping[str, Any], *, resume: Resume = "or refuse"
) -> Iterator[Journal]:
    """Yield the journal of a part of ``out``, where what is finished stays.

    The next call of `journaled` with the same ``purpose`` takes it over. Raises `OutputError` as
    `journaled` does.
    """
    check_free(out, force=False)
    with working(part.beside(out), kept=True) as work:
        journal = Journal(work, _notes(_resumed(work, purpose, resume)))
        try:
            yield journal
        except BaseException:
            journal.settle()
            work.kept = bool(journal.done)
            raise
        journal.close()


def in_parts(out: Path, purpose: Mapping[str, Any]) -> dict[str, Path]:
    """Return where finished files of parts lie, by name, if they are as long as was noted.

    No checksum is compared, so what they say may decide what is done next, and no more.
    """
    found = {}
    for folder in map(partial, parts(out)):
        for entry in _entries(folder, purpose, "or anew"):
            file = folder / entry["file"]
            if file.is_file() and file.stat().st_size == entry.get("size"):
                found[entry["file"]] = file
    return found


def begun(out: Path) -> int:
    """Return how many bytes of an output, or of parts of it, earlier calls have left."""
    folders = map(partial, (out, *parts(out)))
    files = (file for folder in folders for file in folder.glob("out*/**/*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _resumed(
    work: Work, purpose: Mapping[str, Any], resume: Resume
) -> dict[str, Mapping[str, Any]]:
    """Return what is finished and sound, in a folder without anything else."""
    entries = _sound(work.folder, purpose, resume)
    _sweep(work, entries)
    begin_log(work.folder / LOG, purpose, entries.values())
    return entries


def _take_over(
    place: Path,
    work: Work,
    entries: dict[str, Mapping[str, Any]],
    purpose: Mapping[str, Any],
    resume: Resume,
) -> None:
    """Move what a part has finished to where the whole is made, and remove the rest of it.

    A file that is moved and not yet in the log, when all ends, is made again.
    """
    with working(place, kept=True) as part:
        found = _sound(part.folder, purpose, "or refuse" if resume == "or anew" else resume)
        new = {name: entry for name, entry in found.items() if name not in entries}
        folders = {(work.folder / name).parent for name in new}
        for folder in folders:
            make_folder(folder)
        for name in new:
            (part.folder / name).replace(work.folder / name)
        for folder in folders:
            sync(folder)
        append(work.folder / LOG, map(json.dumps, new.values()))
        entries |= new
        part.kept = False


def _sound(
    folder: Path, purpose: Mapping[str, Any], resume: Resume
) -> dict[str, Mapping[str, Any]]:
    """Return the lines of the files that are finished for a purpose, and still as they were."""
    entries = _entries(folder, purpose, resume)
    with ThreadPoolExecutor(4) as pool:
        sound = list(pool.map(lambda entry: is_sound(folder, entry), entries))
    return {entry["file"]: entry for entry, good in zip(entries, sound, strict=True) if good}


def _entries(folder: Path, purpose: Mapping[str, Any], resume: Resume) -> list[Mapping[str, Any]]:
    """Return the lines of the files that a log says are finished for a purpose."""
    lines = read_log(folder / LOG) if resume != "never" else []
    if not (lines and isinstance(lines[0], dict) and "purpose" in lines[0]):
        return []
    if lines[0]["purpose"] == json.loads(json.dumps(purpose)):
        return [each for each in lines[1:] if _names_a_file(each)]
    if resume == "or refuse":
        raise _other(folder, lines[0]["purpose"], purpose)
    return []


def _names_a_file(entry: Any) -> bool:
    """Whether a line names a file in a folder of the work."""
    name = entry.get("file") if isinstance(entry, dict) else None
    folders = name.split("/") if isinstance(name, str) else []
    return len(folders) > 1 and not {"", ".", ".."} & set(folders)


def _notes(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: entry["note"] for name, entry in entries.items()}


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


def _other(folder: Path, theirs: Any, ours: Mapping[str, Any]) -> OutputError:
    found = theirs if isinstance(theirs, dict) else {}
    changed = [key for key in ours if found.get(key) != json.loads(json.dumps(ours[key]))]
    message = f"{folder}: was begun with other {', '.join(changed) or 'settings'}"
    return OutputError(message).hint(
        "Repeat that command to resume it, or start over: --no-resume."
    )
