from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.errors import OutputError
from lora_tools.files import journal as module
from lora_tools.files.journal import begun, in_parts, journaled, journaled_part
from lora_tools.files.parts import Part, parts

X, Y = {"what": "x"}, {"what": "y"}


def make(out: Path, part: Part, names: str, purpose=X, text="made") -> dict:
    with journaled_part(out, part, purpose) as journal:
        before = dict(journal.done)
        for name in names:
            file = f"{journal.place.name}/{name}"
            journal.path(file).write_text(f"{name} {text}")
            journal.finish(file, name)
    return before


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 12))
def test_every_item_is_in_one_part_and_parts_are_about_as_large(sizes, count):
    items = list(range(len(sizes)))
    shares = [Part(n, count).share(items, sizes) for n in range(1, count + 1)]
    assert [item for share in shares for item in share] == items
    for share in shares:
        assert sum(sizes[item] for item in share) <= sum(sizes) / count + max(sizes, default=0)


@pytest.mark.parametrize("name", ["small", "v1.5", "a[1]*", ".hidden", "x-part-1-of-2"])
def test_parts_are_found_again(tmp_path, name):
    out, other = tmp_path / name, tmp_path / "another"
    for part in (Part(1, 2), Part(2, 2), Part(3, 7)):
        make(out, part, "a")
    make(other, Part(1, 1), "a")
    (tmp_path / f"{name}-part-9-of-9").mkdir()
    assert parts(out) == sorted(Part(n, m).beside(out) for n, m in ((1, 2), (2, 2), (3, 7)))
    assert parts(other) == [Part(1, 1).beside(other)]
    assert parts(tmp_path / "none" / "x") == []


def test_a_name_without_room_for_parts_is_refused(tmp_path):
    with pytest.raises(OutputError, match="too long for parts"):
        make(tmp_path / ("x" * 240), Part(1, 2), "a")
    assert list(tmp_path.iterdir()) == []


def test_the_whole_takes_over_what_parts_have_finished_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    make(out, Part(1, 2), "ab")
    make(out, Part(2, 3), "bc")  # another division, and b is in both
    assert begun(out) == 4 * len("a made")
    with journaled(out, X) as journal:
        assert journal.done == {f"out/{name}": name for name in "abc"}
        journal.path("out/d").write_text("d")
        journal.finish("out/d")
    assert {file.name for file in out.iterdir()} == set("abcd")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_part_that_is_repeated_makes_what_is_missing(tmp_path):
    out = tmp_path / "out"
    make(out, Part(1, 2), "ab")
    folder = tmp_path / ".out-part-1-of-2.partial"
    (folder / "out" / "b").write_bytes(bytes(len("b made")))
    assert make(out, Part(1, 2), "") == {"out/a": "a"}
    make(out, Part(1, 2), "b")
    assert sorted(in_parts(out, X)) == ["out/a", "out/b"]
    assert in_parts(out, Y) == {}


def test_what_a_crash_has_left_of_a_part_is_not_taken_over(tmp_path):
    out = tmp_path / "out"
    make(out, Part(1, 2), "ab")
    folder = tmp_path / ".out-part-1-of-2.partial"
    (folder / "out" / "a").write_bytes(bytes(len("a made")))
    log = (folder / "journal").read_text()
    (folder / "journal").write_text(log + '{"file": "../../b", "size": 0, "crc": 0, "note": 0}\n')
    with journaled(out, X) as journal:
        assert journal.done == {"out/b": "b"}


def test_a_whole_that_fails_keeps_what_it_has_taken_over(tmp_path):
    out = tmp_path / "out"
    make(out, Part(1, 2), "ab")
    with pytest.raises(ZeroDivisionError), journaled(out, X):
        raise ZeroDivisionError
    assert parts(out) == []
    with journaled(out, X) as journal:
        assert sorted(journal.done) == ["out/a", "out/b"]


def test_an_end_while_a_part_is_taken_over_loses_files_and_no_more(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(out, Part(1, 2), "ab")
    monkeypatch.setattr(module, "append", lambda log, lines: 1 / 0)
    with pytest.raises(ZeroDivisionError), journaled(out, X):
        pass
    monkeypatch.undo()
    with journaled(out, X) as journal:
        assert journal.done == {}
        assert list(journal.place.iterdir()) == []


def test_parts_of_something_else_are_refused_and_kept(tmp_path):
    out = tmp_path / "out"
    make(out, Part(1, 2), "a", Y)
    for begin in (lambda: make(out, Part(1, 2), "a"), lambda: journaled(out, X).__enter__()):
        with pytest.raises(OutputError, match="begun with other what"):
            begin()
    assert sorted(in_parts(out, Y)) == ["out/a"]
    with journaled(out, X, resume="never") as journal:
        assert journal.done == {}
    assert parts(out) == []


def test_a_part_that_is_being_made_is_waited_for_by_nobody(tmp_path):
    out = tmp_path / "out"
    with journaled_part(out, Part(1, 2), X):
        for begin in (lambda: make(out, Part(1, 2), "a"), lambda: journaled(out, X).__enter__()):
            with pytest.raises(OutputError, match="out-part-1-of-2: is being written by another"):
                begin()
        make(out, Part(2, 2), "b")
    with journaled(out, X) as journal:
        assert journal.done == {"out/b": "b"}


def test_a_part_of_what_is_there_already_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        make(tmp_path / "out", Part(1, 2), "a")
