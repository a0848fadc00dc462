"""Which files are searched, and what keeps the others from being published."""

import tracemalloc

import pytest

from lora_tools.verbs.push.texts import is_searchable, texts

TEXTS = ["a.log", "prod.env", "a.jsonl", "a.csv", "a.ini", "a.ipynb", "Makefile", "a.PNG", "a.bin"]


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_searched_under_any_name(name):
    assert is_searchable(name, b"secret\n")
    assert [text.text for text in texts(name, b"secret\n")] == ["secret\n"]


@pytest.mark.parametrize("name", ["a.so", "a.onnx", "a.zip", "a.png", "a.gguf", "README.md"])
@pytest.mark.parametrize("data", [b"\x7fELF" + bytes(20), b"PK\3\4" + bytes(20), b"\x80\2" * 20])
def test_other_binary_data_are_not(name, data):
    assert not is_searchable(name, data)
    assert list(texts(name, data)) == []


def test_a_vocabulary_is():
    data = b"\n\x0f\n\x0bhf_a_secret\x12" + bytes(9)
    assert [text.text for text in texts("tokenizer.model", data)] == ["hf_a_secret"]


@pytest.mark.parametrize("line", ["a line\n", "no line's end "])
def test_a_file_of_any_size_is_read_in_little_memory(line, tmp_path):
    file = tmp_path / "a.log"
    with file.open("w") as log:
        for _ in range(48):
            log.write(line * ((1 << 20) // len(line)))
    tracemalloc.start()
    count = sum(1 for _ in texts("a.log", file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 48
    assert peak < 12 << 20
