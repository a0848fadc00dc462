"""Paths of a machine: told from everything else, and cut."""

import pytest

from lora_tools.ops.push.paths import is_private, shorten


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("lora-tools shrink /home/me/cat /tmp/out --rank 4", "lora-tools shrink cat out --rank 4"),
        ("'/home/me/a b'", "'a b'"),
        (r"C:\Users\me\cat", "cat"),
        ("org/name hf://org/name@abc", "org/name hf://org/name@abc"),
    ],
)
def test_our_own_paths_are_shortened(text, short):
    if " b" in text:
        short = "'a b'"  # up to the blank: what is left names nobody
    assert shorten(text) == short


def test_names_on_the_hub_are_not_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert not is_private("org/name")
    assert not is_private("gpt2")
    assert is_private("org/here")  # a folder of that name is meant
    assert all(map(is_private, ("/x", "./x", "../x", "~/x", "a/b/c", r"C:\x")))
