import json
from dataclasses import dataclass

import pytest

from lora_tools.report import Document, command_line, grouped, section
from lora_tools.text import json_text


@dataclass(slots=True)
class Note(Document):
    text: str

    def to_dict(self):
        return {"text": self.text}

    def table(self, style):
        return f"{style} table"

    def summary(self):
        return "one\ntwo"


def test_a_report_is_written_as_json_with_a_last_newline(tmp_path):
    note = Note("ΔW is → §")
    note.save(tmp_path / "note.json")
    written = (tmp_path / "note.json").read_bytes().decode("utf-8")
    assert written == note.to_json() + "\n" == '{\n  "text": "ΔW is → §"\n}\n'
    assert json.loads(written) == note.to_dict()
    assert json_text(note.to_dict()) == note.to_json()


def test_its_text_is_the_table_and_the_summary():
    assert Note("").to_text() == "simple table\n\none\ntwo"


def test_a_section_has_the_command_line_only_if_there_was_one():
    told = section("Made.", "lora-tools shrink a b", "one\ntwo", "| table |")
    assert told == "Made.\n\n```sh\nlora-tools shrink a b\n```\n\n| table |\n\n- one\n- two"
    assert section("Made.", "", "one") == "Made.\n\n- one"
    assert list(command_line("")) == []


def test_rows_are_grouped_wherever_they_stand():
    assert grouped(["b1", "a1", "b2"], lambda name: name[0]) == [["a1"], ["b1", "b2"]]


def test_a_report_that_cannot_be_written_cannot_be_made():
    class Half(Document):
        def to_dict(self):
            return {}

    with pytest.raises(TypeError, match="abstract"):
        Half()
