import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.card import BEGIN, END, carry, decoded, metadata, with_metadata, with_section
from lora_tools.errors import FormatError

OURS = f"{BEGIN}\nnew\n{END}\n"


def test_a_section_is_appended_where_there_is_none():
    assert with_section("# Mine\n\nText.\n\n\n", "new") == f"# Mine\n\nText.\n\n{OURS}"


def test_our_section_is_replaced_and_the_rest_stays():
    text = f"---\nlicense: mit\n---\n# Mine\n\n{BEGIN}\nold\n{END}\n\nMore of mine.\n"
    expected = f"---\nlicense: mit\n---\n# Mine\n\n{OURS}\nMore of mine.\n"
    assert with_section(text, "new") == expected


@pytest.mark.parametrize(
    "text",
    [
        f"# Mine\n\n{BEGIN}\nnever ended\n",
        f"# Mine\n\n{END}\nnever begun\n",
        f"# Mine\n\n{END}\nturned\n{BEGIN}\n",
    ],
)
def test_a_stray_marker_costs_its_author_nothing(text):
    once = with_section(text, "old")
    twice = with_section(once, "new")
    assert once == f"{text.rstrip()}\n\n{BEGIN}\nold\n{END}\n"
    assert twice == f"{text.rstrip()}\n\n{OURS}"


def test_a_section_is_taken_as_it_is():
    assert with_section("# Mine", r"\1 \g<0> $1") == f"# Mine\n\n{BEGIN}\n\\1 \\g<0> $1\n{END}\n"


lines = st.lists(st.sampled_from(["# Mine", "text", "", BEGIN, END, "---"]), max_size=8)


@given(lines.map("\n".join))
def test_there_is_one_section_of_ours_and_writing_it_again_changes_nothing_else(text):
    once = with_section(text, "old")
    again = with_section(once, "new")
    assert again.count("old") == 0
    assert again.count("new") == 1
    assert with_section(again, "new") == again
    assert once.replace("old", "new") == again
    mine = [line for line in text.split(BEGIN)[0].splitlines() if line]
    assert [line for line in again.splitlines() if line][: len(mine)] == mine


FRONT = "---\nlicense: mit  # mine\ntags:\n- cats\n# about the base\nbase_model: x/y\n---\n# Cat\n"


def test_front_matter_is_read():
    assert metadata(FRONT) == {"license": "mit", "tags": ["cats"], "base_model": "x/y"}
    assert metadata("# no front matter\n---\na: b\n---\n") == {}
    assert metadata("---\n---\n# Cat") == {}


@pytest.mark.parametrize("front", ["a: [", "just text", "- a\n- b"])
def test_front_matter_that_is_none_is_refused(front):
    with pytest.raises(FormatError, match=r"README\.md: the front matter"):
        metadata(f"---\n{front}\n---\n")


def test_fields_are_set_and_the_other_lines_stay():
    text = with_metadata(FRONT, {"tags": ["cats", "lora"], "library_name": "peft"})
    assert text == (
        "---\nlicense: mit  # mine\ntags:\n- cats\n- lora\n# about the base\nbase_model: x/y\n"
        "library_name: peft\n---\n# Cat\n"
    )
    assert metadata(text)["tags"] == ["cats", "lora"]


def test_what_is_as_it_should_be_is_left_to_the_letter():
    assert with_metadata(FRONT, {"license": "mit", "tags": ["cats"]}) == FRONT
    assert with_metadata("# Cat\n", {}) == "# Cat\n"


def test_front_matter_is_made_where_there_is_none():
    assert with_metadata("# Cat\n", {"license": "mit"}) == "---\nlicense: mit\n---\n# Cat\n"


def test_odd_spellings_are_rewritten_rather_than_broken():
    for front in (
        "{tags: [cats], license: mit}",
        "tags:\n- cats\n# and\n- dogs",
        "? tags\n: [cats]",
    ):
        text = with_metadata(f"---\n{front}\n---\n# Cat\n", {"tags": ["lora"]})
        assert metadata(text)["tags"] == ["lora"]
        assert text.endswith("---\n# Cat\n")


def test_a_readme_is_carried_with_our_section(tmp_path):
    (tmp_path / "README.md").write_bytes("# Mine\r\n\r\nσ\r\n".encode())
    (tmp_path / "README.md").chmod(0o600)
    assert carry(tmp_path / "README.md", tmp_path / "copy.md", "new") == ()
    text = (tmp_path / "copy.md").read_bytes().decode()
    assert text.startswith("# Mine\r\n\r\nσ")
    assert text == with_section("# Mine\r\n\r\nσ\r\n", "new")
    assert (tmp_path / "copy.md").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", ["é".encode("latin-1"), "# Σ".encode("utf-16"), b"\x80\xff\r\n"])
def test_a_readme_in_another_encoding_stays_byte_for_byte(data, tmp_path):
    (tmp_path / "README.md").write_bytes(data)
    (note,) = carry(tmp_path / "README.md", tmp_path / "copy.md", "new")
    assert "not UTF-8" in note
    assert (tmp_path / "copy.md").read_bytes() == data
    with pytest.raises(FormatError, match="not UTF-8"):
        decoded(data, tmp_path / "README.md")


def test_a_readme_that_is_none_of_the_folders_files_is_left_out(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    readme = tmp_path / "folder" / "README.md"
    assert carry(readme, tmp_path / "copy.md", "new") == ()
    for target in (tmp_path / "secret", "README.md", "nothing"):
        readme.symlink_to(target)
        (note,) = carry(readme, tmp_path / "copy.md", "new")
        assert note.startswith("README.md is left out: a link")
        readme.unlink()
    os.mkfifo(readme)
    assert carry(readme, tmp_path / "copy.md", "new") == ("README.md is left out: not a file",)
    assert not (tmp_path / "copy.md").exists()
