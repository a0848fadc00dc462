"""The readable runs of binary data."""

from io import BytesIO

import pytest

from lora_tools.verbs.push.texts.runs import CHUNK, runs, runs_of


@pytest.mark.parametrize("encoding", ["ascii", "utf-16-le", "utf-16-be"])
def test_runs_are_found_among_noise(encoding):
    data = b"\xff\x01\xfe\xff" + "a secret".encode(encoding) + b"\xff\xffshort\xff"
    assert [text.text.strip() for text in runs_of(data, "x")] == ["a secret"]


def test_a_run_across_chunks_is_one():
    data = b"\xff" * (CHUNK - 4) + b"a secret" + b"\xff" * 9
    assert [text.text for text in runs(BytesIO(data), "x")] == ["a secret"]
