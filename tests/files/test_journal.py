import pytest

from lora_tools.errors import OutputError
from lora_tools.files.journal import begun, journaled


def write(journal, name, text):
    journal.begun(name).write_text(text)
    journal.finish(name, len(text))


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with journaled(out, "x") as journal:
        write(journal, "a", "one")
        assert not out.exists()
    assert [file.name for file in out.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def interrupted(out, purpose, files):
    """Fail after these files are finished; return what was finished before."""
    before = {}
    try:
        with journaled(out, purpose) as journal:
            before |= journal.done
            for name, text in files.items():
                write(journal, name, text)
            journal.begun("half").write_text("half")
            raise ZeroDivisionError
    except ZeroDivisionError:
        return before


def test_after_a_failure_finished_files_are_kept_and_others_are_not(tmp_path):
    out = tmp_path / "out"
    interrupted(out, "x", {"a.safetensors": "one"})
    assert not out.exists()
    assert begun(out) == 3
    with journaled(out, "x") as journal:
        assert journal.done == {"a.safetensors": 3}
        write(journal, "b", "two")
    assert sorted(file.name for file in out.iterdir()) == ["a.safetensors", "b"]


def test_another_purpose_or_a_lost_file_or_a_torn_journal_start_anew(tmp_path):
    out, folder = tmp_path / "out", tmp_path / ".out.partial"
    for purpose, harm in (
        ("y", lambda: None),
        ("x", lambda: (folder / "a").unlink()),
        ("x", lambda: (folder / ".journal").write_text("{")),
    ):
        interrupted(out, "x", {"a": "one"})
        harm()
        assert interrupted(out, purpose, {}) == {}
        assert not folder.exists()


def test_a_torn_last_line_costs_its_file_only(tmp_path):
    out, log = tmp_path / "out", tmp_path / ".out.partial" / ".journal"
    interrupted(out, "x", {"a": "one", "b": "two"})
    log.write_text(log.read_text()[:-5])
    with journaled(out, "x") as journal:
        assert journal.done == {"a": 3}


def test_two_processes_do_not_write_at_once(tmp_path):
    with journaled(tmp_path / "out", "x") as journal:
        write(journal, "a", "one")
        with pytest.raises(OutputError, match="another process"), journaled(tmp_path / "out", "x"):
            pass


def test_an_output_that_came_up_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    interrupted(out, "x", {"a": "one"})
    out.mkdir()
    with pytest.raises(OutputError, match="exists already"), journaled(out, "x"):
        pass
    with journaled(out, "x", force=True) as journal:
        assert journal.done == {"a": 3}
    assert (out / "a").read_text() == "one"
