"""Notebooks: sources, what cells printed and drew, and metadata."""

import json
from base64 import b64encode
from io import BytesIO

import pytest
from judges import judge

from lora_tools.verbs.push.texts import texts


def test_each_text_has_its_cell():
    info, drawn = judge("PIL.PngImagePlugin").PngInfo(), BytesIO()
    info.add_text("Comment", "secret drawn")
    judge("PIL.Image").new("L", (64, 64)).save(drawn, "PNG", pnginfo=info)
    picture = b64encode(drawn.getvalue()).decode()
    document = {
        "cells": [
            {"cell_type": "markdown", "source": "# Title"},
            {
                "cell_type": "code",
                "source": ["import x\n", "x.login('secret typed')"],
                "outputs": [
                    {"output_type": "stream", "text": ["a\n", "secret printed\n"]},
                    {"output_type": "display_data", "data": {"image/png": picture}},
                    {"output_type": "error", "evalue": "secret raised"},
                ],
            },
        ],
        "metadata": {"kernelspec": {"name": "secret kernel"}},
        "nbformat": 4,
    }
    data = json.dumps(document).encode()
    found = {
        text.text.partition("secret ")[2].strip("')\n"): text.place
        for text in texts("a.ipynb", data)
        if "secret " in text.text
    }
    assert found == {
        "typed": "cell 2",
        "printed": "cell 2, output 1",
        "drawn": "cell 2, output 2, text Comment",
        "raised": "cell 2, output 3",
        "kernel": "its metadata",
    }
    assert not any(picture[:40] in text.text for text in texts("a.ipynb", data))


@pytest.mark.parametrize(
    "data", [b"{}", b'{"cells": 3}', b"[" * 100_000, b'{"cells": [', b"secret", b'["secret"]']
)
def test_what_is_no_notebook_is_searched_line_by_line(data):
    assert "".join(text.text for text in texts("a.ipynb", data)).startswith(data.decode()[:10])


def test_cells_of_any_shape_are_searched():
    data = json.dumps({"cells": ["secret", None, {"outputs": None}, {"outputs": {"a": 1}}]})
    assert any("secret" in text.text for text in texts("a.ipynb", data.encode()))
