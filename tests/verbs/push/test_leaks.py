"""Secrets and private paths, found where they are and nowhere else."""

import numpy as np
import pytest
from judges import judge
from safetensors.numpy import save_file

from lora_tools.verbs.push.leaks import is_private, leaks, shorten


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("token = 'hf_" + "aB3" * 11 + "'", "a Hugging Face token"),
        ("AKIAIOSFODNN7EXAMPLE", "an AWS key"),
        ("OPENAI=sk-proj-" + "x1" * 20, "an API key"),
        ("ghp_" + "a1" * 18, "a GitHub token"),
        ("github_pat_" + "a1" * 20, "a GitHub token"),
        ("xoxb-1234567890-abc", "a Slack token"),
        ("AIza" + "b" * 35, "a Google key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
        ("saved in /home/alice/runs/7.", "a private path"),
        ('{"dir": "/Users/alice/My"}', "a private path"),
        ("cd /root/x", "a private path"),
        ("/mnt/disk/models/llama", "a private path"),
        ("/workspace/out", "a private path"),
        (r'"C:\\Users\\alice\\out"', "a private path"),
        ("D:/Users/alice/out", "a private path"),
    ],
)
def test_what_is_found(text, kind):
    found = leaks("README.md", f"first\n{text}\n".encode())
    assert [(leak.file, leak.place, leak.kind) for leak in found] == [("README.md", "line 2", kind)]


def test_fields_of_a_gguf_header_are_searched(tmp_path):
    gguf = judge("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_string("general.base_model.0.name", "/home/alice/llama")
    writer.add_array("general.tags", ["lora", "hf_" + "aB3" * 11])
    writer.add_tensor("w", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = leaks("x.gguf", tmp_path / "x.gguf")
    assert [(leak.place, leak.kind) for leak in found] == [
        ("field general.base_model.0.name", "a private path"),
        ("field general.tags", "a Hugging Face token"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/alice/page",
        "see hf_hub_download and hf_transfer",
        "task-force-of-twenty-people-and-more",
        "a/home/of/ones/own",
        "../data/train.json",
        "hf://org/name@main/data/x",
        "model.layers.0.self_attn.q_proj",
        "~/data/x",
        "AKIA",
        "/home/",
        "C:/Windows/fonts",
    ],
)
def test_what_is_left_alone(text):
    assert leaks("README.md", text.encode()) == []


def test_a_vocabulary_may_hold_any_word_but_no_secret():
    assert leaks("tokenizer.json", b'{"/home/alice": 7}') == []
    assert leaks("tokenizer.json", b'"AKIAIOSFODNN7EXAMPLE"')[0].kind == "an AWS key"


def test_binaries_other_than_safetensors_are_not_read_as_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"/home/alice/x")
    assert leaks("tokenizer.model", tmp_path / "tokenizer.model") == []


def test_metadata_is_searched_and_tensors_are_not(tmp_path):
    file = tmp_path / "x.safetensors"
    data = np.frombuffer(b"/home/alice/xyz ", np.uint8)
    save_file({"a": data}, file, {"ss_output_dir": "/home/alice/out", "ss_epochs": "3"})
    found = leaks("x.safetensors", file)
    assert [(leak.place, leak.shown) for leak in found] == [
        ("metadata ss_output_dir", "/home/alice/out")
    ]


def test_a_secret_is_not_printed_whole():
    secret = "hf_" + "aB3" * 11
    assert secret not in str(leaks("a.json", secret.encode())[0])


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
