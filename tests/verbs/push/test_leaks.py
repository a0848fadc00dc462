"""Secrets and private paths, found where they are and nowhere else."""

import numpy as np
import pytest
from conftest import FIXTURES, REAL, ROOT, real
from judges import judge
from safetensors.numpy import save_file

from lora_tools.verbs.push.leaks import leaks
from lora_tools.verbs.push.texts import is_searchable

TOKEN = "hf_" + "aB3xKq9ZtB" * 3


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["train.log", "prod.env", "data.jsonl", "a.csv", "a.ini", "x"])
def test_every_text_file_is_searched_in_every_encoding(name, encoding):
    text = f"first\nZoë: {TOKEN}\nsaved in /home/zoe/x\n"
    assert [(leak.place, leak.kind) for leak in leaks(name, text.encode(encoding))] == [
        ("line 2", "a Hugging Face token"),
        ("line 3", "a private path"),
    ]


def test_a_log_whose_end_is_in_another_encoding():
    data = b"plain text\n" * 1000 + f"login {TOKEN}\r\n".encode("utf-16-le")
    assert [leak.place for leak in leaks("a.log", data)] == ["line 1001"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r'{"dir": "\/home\/alice\/x"}', "/home/alice/x"),
        (r'{"dir": "\u002fhome\u002falice"}', "/home/alice"),
        (r'{"nested": "{\"dir\": \"D:\\\\nets\\\\cat\"}"}', "D:"),
        (r'{"token": "\u0068f_' + TOKEN[3:] + '"}', "hf_aB3…"),
    ],
)
def test_escapes_of_json_hide_nothing(text, shown):
    (leak,) = leaks("a.json", text.encode())
    assert leak.shown.startswith(shown)
    assert leak.place == "line 1"


def test_a_leak_far_into_a_line_has_a_column():
    (leak,) = leaks("a.json", ("x " * 50_000 + TOKEN + " y" * 50_000).encode())
    assert leak.place == "line 1, column 100,001"


@pytest.mark.parametrize("lead", range(1380, 1440))
def test_where_pieces_of_a_line_meet_leaks_are_found_once_and_whole(lead):
    line = "x" * lead + " " + TOKEN + " " + "y" * 3000
    assert len(leaks("a.txt", line.encode())) == 1
    inside = "x" * lead + TOKEN + "y" * 3000  # the middle of a longer word
    assert leaks("a.txt", inside.encode()) == []


def test_names_of_files_tensors_and_entries_are_searched_and_cut(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({TOKEN: np.ones(2, np.float32)}, file, {TOKEN: "x"})
    found = leaks(f"{TOKEN}.safetensors", file)
    assert [(leak.file, leak.place) for leak in found] == [
        ("hf_aB3….safetensors", "its name"),
        ("hf_aB3….safetensors", "metadata hf_aB3…"),
        ("hf_aB3….safetensors", "the name of tensor hf_aB3…"),
    ]
    assert found[1].entry == TOKEN
    assert not any(TOKEN in str(leak) for leak in found)


def test_the_same_leak_twice_in_a_line_is_one_and_many_are_enough():
    assert len(leaks("a.txt", f"{TOKEN} {TOKEN}\n{TOKEN}".encode())) == 2
    assert len(leaks("a.txt", b"/home/alice/x\n" * 100_000)) < 10_000


HOSTILE = [
    "\\", "eyJ", "eyJa.", "sk-", "://", "a://b:", "/", "//", "/home/", "C:\\", "\\u0041", " ", "\0",
    "api_key = ", "aws_secret", "wandb key ", "bearer ", "-----BEGIN ", "xoxb-1-", "glpat-",
    '"username":"key":', "0123456789:", "/tmp/a\n", "TOKEN=a1b2c3d4 ", "a", "0",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_a_megabyte_takes_no_more_than_its_length(text):
    """Quadratic patterns would need hours."""
    line = text * (1_000_000 // len(text))
    start = "a line of text\n" * 1000  # what begins with NULs is no text
    found = leaks("a.txt", f"{start}{line}\n\nat the end: {TOKEN}\n".encode())
    assert found == [] or all(len(str(leak)) < 5000 for leak in found)
    assert any(leak.shown == "hf_aB3…" for leak in found) or len(found) >= 100


def test_no_file_of_ours_is_taken_for_a_leak():
    found = [
        str(leak)
        for folder in (FIXTURES, ROOT / "docs")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
        for leak in leaks(path.name, path)
    ]
    assert found == []


TRUE = {
    ("mlx-qwen05b", "adapter_config.json", "line 5"),
    ("mlx-qwen05b", "adapter_config.json", "line 19"),
}
"""The home folder of whoever trained it, as mlx-lm writes it: what the search is for."""


@pytest.mark.parametrize("name", sorted(p.name for p in REAL.glob("*") if p.is_dir()) or ["real"])
def test_no_file_of_others_is_taken_for_a_leak(name):
    files = [path for path in sorted(real(name).rglob("*")) if path.is_file()]
    assert all(is_searchable(path.name, path) for path in files)
    found = {(name, leak.file, leak.place) for path in files for leak in leaks(path.name, path)}
    assert found == {leak for leak in TRUE if leak[0] == name}
