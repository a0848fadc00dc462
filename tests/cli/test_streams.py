"""Streams that cannot take what is written: other encodings, a closed end, a full disk."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_tools.cli.streams import Guarded

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"
ENCODINGS = (
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
)


def run(*arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=300, **options)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_every_encoding_can_say_it(encoding, tmp_path):
    adapter = tmp_path / os.fsdecode(b"caf\xff")
    shutil.copytree(PLAIN, adapter)
    environment = os.environ | encoding
    out = tmp_path / "out"
    done = run(
        "shrink", adapter, out, "--rank", 2, "--json", env=environment, stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["source"] == str(adapter)
    assert json.loads((out / "lora_tools_report.json").read_bytes())["source"] == str(adapter)
    assert b"\\udcff" in (out / "README.md").read_bytes()
    done = run("inspect", adapter, "--spectrum", env=environment, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"\\udcff" in done.stdout
    assert any(sign in done.stdout for sign in ("‖ΔW‖".encode(), b"\\u2016\\u0394W\\u2016"))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("inspect", PLAIN, "--full"), 0),
        (("formats", "--json"), 0),
        (("--help",), 0),
        (("diff", PLAIN, FIXTURES / "minilm-rslora"), 1),
    ],
)
def test_a_reader_that_has_gone_is_no_error(arguments, status):
    mine, its = os.pipe()
    os.close(mine)
    done = run(*arguments, stdout=its)
    os.close(its)
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="SKIPPED FOR WANT OF /dev/full")
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("inspect", PLAIN), 1), (("inspect", PLAIN, "--json"), 1), (("diff", PLAIN, PLAIN), 2)],
)
def test_a_full_disk_is_said(arguments, status):
    with Path("/dev/full").open("wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == status
    assert done.stderr == b"error: stdout: No space left on device\n"


def test_closed_streams_lead_nowhere(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lora_tools", "shrink", PLAIN, out, "--rank", "2"]
    line = " ".join(map(str, command))
    done = subprocess.run(["sh", "-c", f"{line} >&- 2>&- <&-"], timeout=300)
    assert done.returncode == 0
    assert json.loads((out / "lora_tools_report.json").read_bytes())["totals"]["modules"] == 12


def guarded() -> tuple[Guarded, io.StringIO]:
    stream = io.StringIO()
    return Guarded(stream, "stderr"), stream


def test_a_library_shows_what_it_writes():
    stream, written = guarded()
    stream.write("name \x1b[31m\x9b\u202e\n")
    stream.writelines(["a\x07", "\tb\r\n"])
    assert written.getvalue() == "name \\x1b[31m\\x9b\\u202e\na\\x07\tb\\r\n"


def test_a_bar_moves_and_a_name_in_it_does_not():
    from tqdm import tqdm

    stream, written = guarded()
    with tqdm(total=2, desc="evil\x1b[A\x1b[2Jname", file=stream, position=1, leave=False) as bar:
        bar.update()
    text = written.getvalue()
    assert "evil\\x1b[A\\x1b[2Jname" in text
    assert text.startswith("\n\r")
    assert set(text.replace("\x1b[A", "")) & {"\x1b", "\x07"} == set()
    assert text.count("\x1b[A") == text.count("\n")


def test_bytes_do_not_pass_by():
    stream, _ = guarded()
    assert not hasattr(stream, "buffer")
    with pytest.raises(TypeError):
        stream.write(b"\x1b")
