import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.card import BEGIN, END, with_section

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
