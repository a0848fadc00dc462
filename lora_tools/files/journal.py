"""A folder in the making that a kill does not waste: finished files are kept, and known."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_tools.errors import OutputError
from lora_tools.files.transfer import sync
from lora_tools.files.writer import check_free, replace_output

LOG = ".journal"


class Journal:
    """The folder, and a line of JSON for every file in it that is finished.

    A file is begun under another name. Its bytes are on the disk before it is renamed, and it is
    renamed before its line is written, so that a line never promises what a crash has taken.
    """

    def __init__(self, folder: Path, done: Mapping[str, Any]) -> None:
        self.folder = folder
        self.done = dict(done)
        """What was noted of each finished file."""

    def begun(self, name: str) -> Path:
        """Return the path under which a file is to be written."""
        return self.folder / f"{name}.unfinished"

    def finish(self, name: str, note: Any) -> None:
        """Give a file its name, and remember it with a note."""
        path = self.begun(name)
        sync(path)
        path.rename(self.folder / name)
        sync(self.folder)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"file": name, "note": note}) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.done[name] = note


@contextmanager
def journaled(out: Path, purpose: str, *, force: bool = False) -> Iterator[Journal]:
    """Yield a journal whose folder becomes ``out`` when the block succeeds.

    After a failure or a kill the folder stays beside ``out`` under a hidden name, and the next
    call with the same ``purpose`` (a digest of all that decides the bytes) goes on in it; another
    purpose starts anew. Raises `OutputError` while another process writes there.
    """
    folder = _folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out}: is being written by another process") from None
        journal = Journal(folder, _resume(folder, purpose))
        try:
            yield journal
        except BaseException:
            if not journal.done:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        check_free(out, force=force)
        (folder / LOG).unlink()
        replace_output(out, folder, force=force)
        sync(out.parent)
    finally:
        os.close(lock)


def begun(out: Path) -> int:
    """Return how many bytes of finished files an earlier call has left for ``out``."""
    return sum(file.stat().st_size for file in _folder(out).glob("*.safetensors"))


def _folder(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def _resume(folder: Path, purpose: str) -> dict[str, Any]:
    """Return the finished files of an earlier call, in a folder without anything else."""
    done: dict[str, Any] = {}
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        if json.loads(lines[0]) == {"purpose": purpose}:
            entries = [json.loads(line) for line in lines[1:] if line.endswith("}")]
            done = {entry["file"]: entry["note"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError):
        done = {}  # a line that was cut off: what it promised is made again
    if not all((folder / name).is_file() for name in done):
        done = {}
    for file in folder.iterdir():
        if file.name not in done:
            file.unlink()
    lines = [json.dumps({"purpose": purpose})]
    lines += [json.dumps({"file": name, "note": note}) for name, note in done.items()]
    (folder / LOG).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return done
