"""Paths of a machine: told from everything else, and cut."""

import pytest

from lora_tools.verbs.push.paths import is_private, private_paths, shorten


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
    assert not is_private("org/here")  # nobody looks whether there is such a folder
    assert all(map(is_private, ("/x", "./x", "../x", "~/x", "a/b/c", r"C:\x")))


@pytest.mark.parametrize(
    "text",
    [
        "/Volumes/Disk/loras/cat",
        "/storage/alice/x",
        "/cluster/work/alice",
        "/mnt2/alice",
        "/home1/alice",
        "/private/var/folders/x1/y",
        "/content/drive/MyDrive/x",
        "/runpod-volume/out",
        r"D:\loras",
        r"D:\training\set",
        r"E:\\nets\\cat",
        "D:/models/cat",
        r"C:\Users\alice",
        "file:///home/alice/x",
        "file:///opt/alice",
        "FILE://localhost/opt/x",
        "file:///C:/out/x",
        "/home/alice/...",
        "/home/alice/$RUN",
        "/home/userland/x",
    ],
)
@pytest.mark.parametrize("form", ["{}", "in '{}'", '"dir": "{}",', "DIR={}"])
def test_private_paths_are_found_whole(text, form):
    assert [match[0] for match in private_paths(form.format(text))] == [text]


@pytest.mark.parametrize(
    "text",
    [
        r"Q:\nWhat is it?\nA:\nNothing.",
        r"A:\n\nB:\tx",
        r"Q:\nthis\nA:\nthat",
        r"\u0041:\u0042",
        r"[a-z\d:\d\d\s+$]",
        r"t:\x00\x12\n\x63ontrol",
        "/tmp/{name}",
        "/home/user/app",
        "/home/$USER/x",
        "/Users/<you>/x",
        r"C:\Users\…",
        "/data/...",
        r"C:\Windows\Fonts\x.ttf",
        "C:/Program Files/x",
        "s3://bucket/data/x",
        "https://example.org/storage/x",
        "${HOME}/data/x",
        "lora_unet/data/x",
        "ratio 16:9, a: b",
        "file:///",
        "file:///…",
        "file:///path/to/x",
        "/storage",
    ],
)
def test_what_says_nothing_about_a_machine_is_left_alone(text):
    assert [match[0] for match in private_paths(text)] == []
