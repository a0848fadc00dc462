import json
import sys
import unicodedata

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.text import (
    LONGEST,
    ascii_json,
    config_text,
    cut,
    joined,
    json_text,
    label,
    message,
    visible,
)

SEEN = {0x70F, 0x6DD, 0x890, 0x891, 0x8E2, *range(0x600, 0x606), 0x110BD, 0x110CD}
"""Of the class of formats, but drawn: signs that enclose numbers."""


def test_every_control_format_separator_and_surrogate_is_shown():
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        kind = unicodedata.category(sign)
        if kind in ("Cc", "Cs", "Zl", "Zp") or (
            kind == "Cf" and code not in SEEN and not 0x13430 <= code <= 0x1343F
        ):
            assert visible(sign).isascii(), hex(code)


@pytest.mark.parametrize(
    "text", ["layers.0.q", "ΔW ‖σ‖ × –", "日本語　名", "naïve é", "עברית", "\\x1b"]
)
def test_what_is_read_stays(text):
    assert visible(text) == text


@given(st.text())
def test_done_twice_it_is_done_once(text):
    assert visible(visible(text)) == visible(text)
    assert hostile.unseen(visible(text)) == []
    assert "\n" not in label(text)
    assert len(joined([text, text]).split("\n")) == 2


@given(
    st.recursive(
        st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_loses_nothing(data):
    text = json_text(data)
    assert config_text(data) == text
    assert hostile.unseen(text) == []
    assert json.loads(text) == json.loads(ascii_json(text)) == data
    assert ascii_json(text).isascii()


def test_halves_of_pairs_are_written_and_read():
    assert json.loads(json_text({"\udc80": "\ud800x"})) == {"\udc80": "\ud800x"}
    json_text("\ud800").encode()


def test_long_names_lose_their_middle():
    name = f"first{'x' * 100_000}last"
    shown = label(name)
    assert len(shown) <= LONGEST
    assert shown.startswith("first")
    assert shown.endswith("last")
    assert cut("short") == "short"
    assert len(message(f"{name}: is wrong, as {name} is")) < 500
    assert len(message("a " * 1_000_000)) <= 2000
