"""Signals: what they make a command do, and leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"

SHRINK = """
import sys, time
from lora_tools.cli import main
from lora_tools.files import writer

def publish(*arguments, **options):
    {block}

writer.publish = publish
sys.argv = ["lora-tools", "shrink", sys.argv[1], sys.argv[2], "--rank", "2"]
{before}
main()
"""
HERE = 'print("here", flush=True)'
ASLEEP = f"{HERE}; time.sleep(60)"
AT_WORK = f"""
    from lora_tools.executors import Threads

    def work(number):
        {HERE}
        time.sleep(60)

    list(Threads(1, patient=False).map(work, range(8)))
"""
SLOW_TO_CLEAN = """
    try:
        print("here", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep({seconds})
"""


def begin(out: Path, block: str = ASLEEP, before: str = "") -> subprocess.Popen[str]:
    """Start a shrink that stops when everything is written and OUT has not its name yet."""
    code = SHRINK.format(block=block.strip(), before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(PLAIN), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("block", [ASLEEP, AT_WORK], ids=["main thread", "worker threads"])
@pytest.mark.parametrize(
    ("number", "status", "stated"),
    [
        (signal.SIGINT, 130, "Interrupted."),
        (signal.SIGTERM, 143, "Terminated."),
        (signal.SIGHUP, 129, "Hangup."),
    ],
)
def test_a_signal_cleans_up_promptly_and_is_the_status(tmp_path, number, status, stated, block):
    process = begin(tmp_path / "out", block)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=50)
    assert time.monotonic() - began < 50
    assert (process.returncode, error.strip()) == (status, stated)
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_of_the_system_does_not_stop_the_cleaning(tmp_path):
    process = begin(tmp_path / "out", SLOW_TO_CLEAN.format(seconds=2))
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 129
    assert list(tmp_path.iterdir()) == []


def test_a_person_who_insists_is_obeyed_at_once_and_nothing_looks_whole(tmp_path):
    out = tmp_path / "out"
    process = begin(out, SLOW_TO_CLEAN.format(seconds=60))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=50)
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    command = [sys.executable, "-m", "lora_tools", "shrink", str(PLAIN), str(out), "--rank", "2"]
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_somebody_ignores_stays_ignored(tmp_path):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup does
    process = begin(tmp_path / "out", f"{HERE}; time.sleep(3)", ignore)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=50)
    assert process.returncode == 0


def test_an_error_of_the_system_names_the_file_first_and_no_number(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / ("x" * 300)
    command = [sys.executable, "-m", "lora_tools", "shrink", str(PLAIN), str(out), "--rank", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {out}: File name too long"]


def test_a_path_that_is_too_long_for_a_line_is_whole_in_an_error_of_ours(tmp_path):
    out = tmp_path / ("x" * 200) / ("y" * 200)
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "lora_tools", "shrink", str(PLAIN), str(out), "--rank", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[0] == f"error: {out}: exists already"
