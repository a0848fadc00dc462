"""Pieces: small, whole where lines are short, and overlapping where they are long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.verbs.push.texts.text import BLOCK, LONG, MARGIN, pieces


def spread(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


def whole(text, size, mark):
    """Where each mark is, by the piece that owns it."""
    found = []
    for piece in pieces(spread(text, size), numbered=True):
        assert len(piece.text) <= BLOCK
        at = piece.text.find(mark)
        while at >= 0:
            if at >= piece.begin and (piece.end is None or at < piece.end):
                before = piece.text[:at]
                lines = before.count("\n")
                column = at - before.rfind("\n") - 1 + (0 if lines else piece.column)
                found.append((piece.line + lines, column))
            at = piece.text.find(mark, at + 1)
    return found


def places(text, mark):
    return [
        (number, at)
        for number, line in enumerate(text.split("\n"), 1)
        for at in range(len(line))
        if line.startswith(mark, at)
    ]


@pytest.mark.parametrize("size", [1 << 20, 5000, 97])
@pytest.mark.parametrize("length", [1, LONG - 1, LONG, LONG + 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_every_place_of_a_long_line_belongs_to_one_piece(length, size):
    mark = "<0123456789>"
    line = "".join(f"{mark}{'.' * (i % 13)}" for i in range(length // 12))
    text = f"first\n{line}\n\n{line}\nlast {mark}"
    assert whole(text, size, mark) == places(text, mark)


@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(50, 200_000))
def test_lines_of_any_length_in_chunks_of_any_size(lengths, size):
    text = "\n".join("x" * length + "<mark>" + "y" * length for length in lengths)
    assert whole(text, size, "<mark>") == places(text, "<mark>")


def test_a_piece_knows_what_is_before_and_after_what_it_owns():
    for piece in pieces(["x" * 10 * BLOCK]):
        assert len(piece.text) <= LONG
        assert piece.begin == (MARGIN if piece.column else 0)


def test_no_text_has_no_pieces():
    assert list(pieces([])) == list(pieces(["", ""])) == []
