import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lora_tools.errors import OutputError
from lora_tools.files import journal as module
from lora_tools.files.journal import begun, journaled
from lora_tools.files.journal_log import BLOCK, checksum

X, Y = {"what": "x"}, {"what": "y"}


def write(journal, name, text):
    journal.path(f"out/{name}").write_text(text)
    journal.finish(f"out/{name}", {"length": len(text)})


def interrupted(out, purpose, files, *, settle=False, **how):
    """Fail after these files are finished; return what was finished before."""
    before = {}
    try:
        with journaled(out, purpose, **how) as journal:
            before |= journal.done
            for name, text in files.items():
                write(journal, name, text)
            if settle:
                journal.settle()
                journal.leave()
            journal.path("out/half").write_text("half")
            raise ZeroDivisionError
    except ZeroDivisionError:
        return before


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with journaled(out, X) as journal:
        write(journal, "a", "one")
        assert not out.exists()
    assert [file.name for file in out.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_after_a_failure_finished_files_are_kept_and_others_are_not(tmp_path):
    out = tmp_path / "out"
    interrupted(out, X, {"a.safetensors": "one"})
    assert not out.exists()
    assert begun(out) == 7
    with journaled(out, X) as journal:
        assert journal.done == {"out/a.safetensors": {"length": 3}}
        assert begun(out) == 3
        write(journal, "b", "two")
    assert sorted(file.name for file in out.iterdir()) == ["a.safetensors", "b"]


def test_after_a_failure_without_a_finished_file_nothing_is_left(tmp_path):
    interrupted(tmp_path / "out", X, {})
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_last_step_leaves_the_output_and_nothing_else(tmp_path, monkeypatch):
    real, times = Path.rmdir, []

    def rmdir(self: Path) -> None:
        times.append(self)
        if len(times) == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    with pytest.raises(KeyboardInterrupt), journaled(tmp_path / "out", X) as journal:
        write(journal, "a", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text("on"),
        lambda file: file.write_text("onf"),
        lambda file: file.write_bytes(bytes(3)),
        lambda file: file.write_bytes(b""),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["gone", "shorter", "a bit", "zeros", "empty", "folder"],
)
def test_a_file_that_is_not_as_it_was_noted_is_made_again(tmp_path, harm):
    out = tmp_path / "out"
    interrupted(out, X, {"a": "one", "b": "two"})
    harm(tmp_path / ".out.partial" / "out" / "a")
    with journaled(out, X) as journal:
        assert journal.done == {"out/b": {"length": 3}}
        assert not journal.path("out/a").exists()
        write(journal, "a", "one")
    assert {file.name: file.read_text() for file in out.iterdir()} == {"a": "one", "b": "two"}


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (lambda text: text[:-5], 1),
        (lambda text: text[: text.index(b"\n") + 1] + bytes(200), 0),
        (lambda text: bytes(len(text)), 0),
        (lambda text: b"", 0),
        (lambda text: text.replace(b'"length": 3', b'"length": 4'), 0),
        (lambda text: text + b"[]\n", 2),
        (lambda text: text + b'{"file": "../../outside", "size": 0}\n', 2),
    ],
    ids=["torn", "blank lines", "blank", "empty", "another note", "no object", "no checksum"],
)
def test_a_damaged_journal_is_believed_as_far_as_it_is_sound(tmp_path, harm, kept):
    out, log = tmp_path / "out", tmp_path / ".out.partial" / "journal"
    interrupted(out, X, {"a": "one", "b": "two"})
    log.write_bytes(harm(log.read_bytes()))
    assert len(interrupted(out, X, {"c": "3"})) == kept
    assert len(interrupted(out, X, {})) == kept + 1


def test_another_purpose_starts_anew_or_is_refused(tmp_path):
    out = tmp_path / "out"
    interrupted(out, X, {"a": "one"})
    with pytest.raises(OutputError, match="begun with other what") as caught:
        interrupted(out, Y, {}, resume="or refuse")
    assert "--no-resume" in caught.value.__notes__[0]
    assert len(interrupted(out, X, {}, resume="or refuse")) == 1
    assert interrupted(out, X, {"a": "one"}, resume="never") == {}
    assert interrupted(out, Y, {}) == {}
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_at_once(tmp_path):
    with journaled(tmp_path / "out", X) as journal:
        write(journal, "a", "one")
        with pytest.raises(OutputError, match="another process"), journaled(tmp_path / "out", X):
            pass


def test_an_output_that_came_up_meanwhile_is_not_replaced_and_nothing_finished_is_lost(tmp_path):
    out = tmp_path / "out"

    def come_up() -> None:
        with journaled(out, X) as journal:
            write(journal, "a", "one")
            out.mkdir()
            (out / "mine").write_text("mine")

    with pytest.raises(OutputError, match="exists already"):
        come_up()
    assert (out / "mine").read_text() == "mine"
    with pytest.raises(OutputError, match="exists already"), journaled(out, X):
        pass
    with journaled(out, X, force="any") as journal:
        assert journal.done == {"out/a": {"length": 3}}
    assert [file.name for file in out.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_its_line_is(tmp_path, monkeypatch):
    events, fsync, append = [], os.fsync, module.append

    def watch(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def log(path: Path, lines: Iterable[str]) -> None:
        lines = list(lines)
        events.extend(f"line of {json.loads(line).get('file')}" for line in lines)
        append(path, lines)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(module, "append", log)
    interrupted(tmp_path / "out", X, {"a": "one", "b": "two"})
    for name in "ab":
        assert events.index(name) < events.index(f"line of out/{name}")
    assert events[-1] == "journal"


def test_what_the_disk_refuses_is_raised_and_not_noted(tmp_path, monkeypatch):
    real = module.sync

    def refuse(path: Path) -> None:
        if path.name == "b":
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(module, "sync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        interrupted(tmp_path / "out", X, {"a": "one", "b": "two", "c": "three"}, settle=True)
    monkeypatch.undo()
    assert "out/b" not in interrupted(tmp_path / "out", X, {})


def test_files_are_noted_from_any_thread(tmp_path):
    def work() -> None:
        with journaled(tmp_path / "out", X) as journal:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: write(journal, f"f{n}", "x" * n), range(20)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert len(interrupted(tmp_path / "out", X, {})) == 20


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 12])
def test_a_checksum_covers_every_byte_and_the_size(tmp_path, size):
    data = np.random.default_rng(size).integers(1, 256, size, np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    whole = checksum(tmp_path / "a")
    assert whole == (size, checksum(tmp_path / "a")[1])
    for place in {0, size // 2, size - 1} if size else ():
        for harmed in (
            data[:place] + b"\0" + data[place + 1 :],
            data[:place] + bytes(size - place),
        ):
            (tmp_path / "a").write_bytes(harmed)
            assert checksum(tmp_path / "a")[0] == size
            assert checksum(tmp_path / "a")[1] != whole[1]
    (tmp_path / "a").write_bytes(data + b"\0")
    assert checksum(tmp_path / "a")[0] == size + 1


def test_blocks_that_changed_places_are_found(tmp_path):
    (tmp_path / "a").write_bytes(b"\1" * BLOCK + b"\2" * BLOCK)
    (tmp_path / "b").write_bytes(b"\2" * BLOCK + b"\1" * BLOCK)
    assert checksum(tmp_path / "a") != checksum(tmp_path / "b")
