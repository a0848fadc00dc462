"""Text in every encoding that people's editors write."""

from io import BytesIO

import pytest

from lora_tools.verbs.push.texts.plain import CHUNK, decoded, encoding

TEXT = "größe = 1\nname = Zoë\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_it_is_read_as_it_was_written(name):
    assert "".join(decoded(BytesIO(TEXT.encode(name)))) == TEXT


@pytest.mark.parametrize("shift", range(4))
def test_a_character_on_a_chunks_border_stays_whole(shift):
    text = "a" * (CHUNK - shift) + "€ü" + "b" * CHUNK + "€"
    assert "".join(decoded(BytesIO(text.encode()))) == text


def test_bytes_that_are_no_utf_8_lose_nothing_around_them():
    data = b"a" * CHUNK + b"\xe2\x82" + b"\xffsecret" + b"b" * CHUNK
    text = "".join(decoded(BytesIO(data)))
    assert "secret" in text
    assert text.count("a") == text.count("b") == CHUNK


@pytest.mark.parametrize(
    "data", [b"\0\0\0\0", bytes(range(256)), b"\x7fELF\2\1\1" + bytes(9), b"PK\3\4" + bytes(20)]
)
def test_binary_data_are_no_text(data):
    assert encoding(data) is None


def test_colours_of_a_terminal_are_text():
    assert encoding(b"\x1b[31mred\x1b[0m\r\n\tx") == "utf-8"
    assert encoding(b"") == "utf-8"
