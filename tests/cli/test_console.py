"""What a stranger's files make the terminal show: through real processes, with and without one."""

import ast
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest

ROOT = Path(__file__).parents[2] / "lora_tools"
COLOUR = re.compile(r"\x1b\[3[136]m(error|hint|warning):\x1b\[0m")
"""Our own, on our own words."""

VERBS = {
    "inspect": ("inspect", "A"),
    "inspect, every line": ("inspect", "A", "--full", "--spectrum", "--for", "all"),
    "inspect, with its base": ("inspect", "A", "--base", "M"),
    "inspect, as JSON": ("inspect", "A", "--spectrum", "--for", "all", "--json"),
    "inspect a model": ("inspect", "M"),
    "inspect what is not there": ("inspect", f"A/{hostile.ESCAPES[0]}\n{hostile.FORGED}"),
    "inspect what contradicts itself": ("inspect", "C"),
    "shrink what contradicts itself": ("shrink", "C", "OUT", "--rank", "1"),
    "diff": ("diff", "A", "B", "--full"),
    "diff, as JSON": ("diff", "A", "B", "--json"),
    "shrink": ("shrink", "A", "OUT", "--rank", "1"),
    "shrink, ranks to choose from": ("shrink", "A", "OUT", "--dry-run"),
    "convert": ("convert", "A", "OUT", "--to", "kohya"),
    "convert, refused": ("convert", "A", "OUT", "--to", "gguf"),
    "merge": ("merge", "M", "A", "OUT"),
    "merge, planned": ("merge", "M", "A", "OUT", "--dry-run"),
    "merge into another": ("merge", "OTHER", "A", "OUT"),
    "verify": ("verify", "M", "M", "A"),
    "extract, planned": ("extract", "M", "N", "OUT", "--dry-run"),
    "a wrong option": ("shrink", "A", "OUT", "--rank", hostile.EVIL.replace("\0", "")),
    "a wrong command": (hostile.EVIL.replace("\0", ""),),
    "a traceback": ("--debug", "inspect", f"A/{hostile.ESCAPES[2]}"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Adapters A and B, their base M, a tuned N, and the model of somebody else."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile.adapter(folder / "A")
    hostile.adapter(folder / "B", rank=3)
    hostile.adapter(folder / "C", torn=True)
    hostile.model(folder / "M")
    tuned = hostile.model(folder / "N") / "model.safetensors"
    data = bytearray(tuned.read_bytes())
    data[-3:] = b"\x01\x02\x3d"
    tuned.write_bytes(data)
    from safetensors.torch import save_file
    from torch import zeros

    (folder / "OTHER").mkdir()
    save_file({f"{hostile.EVIL}.weight": zeros(2, 2)}, folder / "OTHER" / "model.safetensors")
    return folder


def arguments(files, tmp_path, verb):
    places = {"OUT": str(tmp_path / "out")}
    return [
        sys.executable,
        "-m",
        "lora_tools",
        *(
            places.get(word) or re.sub(r"^([ABCMN]|OTHER)(?=/|$)", rf"{files}/\1", word)
            for word in verb
        ),
    ]


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Run a command whose stdout and stderr are a terminal; return its status and what came."""
    mine, its = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its) as process:
        os.close(its)
        data = bytearray()
        while True:
            try:
                data += os.read(mine, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(mine)
    return process.returncode, data.decode().replace("\r\n", "\n")


def check(text: str) -> None:
    assert hostile.unseen(text) == []
    assert not re.search(rf"^\s*{hostile.FORGED}", text, re.MULTILINE)
    if not text.lstrip().startswith("{"):
        assert max(map(len, text.split("\n"))) <= 10_000
        assert len(text) < 200_000


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_acts_on_a_terminal(verb, files, tmp_path):
    status, text = on_a_terminal(arguments(files, tmp_path, VERBS[verb]))
    text = COLOUR.sub(r"\1:", text)
    text = re.sub(r"\r(?:\w+: .*?)?(?=\r|\n|$)", "", text)  # bars
    check(text)
    assert status in (0, 1, 2, 4)
    assert ("Traceback" in text) == (verb == "a traceback"), text


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_hidden_in_a_file_or_a_pipe(verb, files, tmp_path):
    command = arguments(files, tmp_path, VERBS[verb])
    done = subprocess.run(command, capture_output=True, timeout=300)
    out, err = done.stdout.decode(), done.stderr.decode()
    check(out)
    check(err)
    assert ("Traceback" in err) == (verb == "a traceback"), err
    if "--json" in command:
        found = "".join(strings(json.loads(out)))
        assert [name for name in hostile.modules() if name not in found] == []
    for file in (tmp_path / "out").glob("*.[jm][sd]*"):  # reports, configurations and cards
        if file.name != "README.md":
            assert hostile.unseen(file.read_bytes().decode()) == []


def strings(value: object) -> Iterator[str]:
    """Yield every string of plain data."""
    match value:
        case str():
            yield value
        case dict():
            for item in (*value, *value.values()):
                yield from strings(item)
        case list():
            for item in value:
                yield from strings(item)


def test_the_card_of_a_result_is_text(files, tmp_path):
    subprocess.run(
        arguments(files, tmp_path, ("shrink", "A", "OUT", "--rank", "1")), capture_output=True
    )
    text = (tmp_path / "out" / "README.md").read_bytes().decode()
    ours = text.partition("<!-- lora-tools: begin -->")[2]
    assert hostile.unseen(ours) == []
    assert "<img" not in ours.replace("\\<img", "")
    assert "](http" not in ours.replace("\\[x](http", "")


def test_a_page_is_text(files, tmp_path):
    page = tmp_path / "page.html"
    command = arguments(files, tmp_path, ("inspect", "A", "--html", str(page), "--force"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert page.is_file(), done.stderr
    body, _, _ = page.read_bytes().decode().partition('<script type="application/json"')
    assert hostile.unseen(body) == []
    assert "<img" not in body
    assert "onerror" in body  # escaped, not lost


DOORS = (
    *("print", "warnings.warn"),
    *("click.echo", "click.secho", "click.prompt", "click.confirm"),
)
STREAMS = ("sys.stdout.w", "sys.stderr.w", "sys.__std", "logging.", "traceback.print", "pprint.")


def test_everything_leaves_by_one_door():
    """Nobody but the console prints; the streams that it prints on are guarded."""
    doors = []
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in DOORS or name.startswith(STREAMS) or name.endswith(".show"):
                doors.append(f"{file.relative_to(ROOT)}: {name}")
    assert doors == ["cli/console.py: click.prompt"]


def test_everything_tabular_is_made_in_one_place():
    users = [
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        if re.search(r"^\s*(from|import) tabulate", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert users == ["report/table.py"]
