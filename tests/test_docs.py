"""The documentation says what the commands say, its examples run and its links lead somewhere."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import click
import dense
import pytest
import torch
from bases import BASES
from sdxl_blocks import sdxl

import lora_tools
from lora_tools.cli import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
LIBRARY = (DOCS / "library.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MACHINE = re.compile(r"(?<![\w.~-])/(?:work|root|home|tmp|Users|mnt)/")
EXAMPLES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in (ROOT / "README.md", DOCS / "how-to.md")
    for number, (language, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if language == "python"
]
SESSIONS = ("tutorial.md", "inspect.md")
"""Pages whose console blocks can be followed from the repository's root, in order."""
OPTIONS = [
    pytest.param(context.command_path, option, id=f"{context.info_name}{option.opts[-1]}")
    for context in GENERATE["contexts"]()
    for option in context.command.get_params(context)
    if isinstance(option, click.Option)
]


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_commands_page_is_up_to_date() -> None:
    assert GENERATE["page"]() == CLI, "run `python docs/generate.py`"


def test_the_runtimes_page_is_up_to_date() -> None:
    page = (DOCS / "runtimes.md").read_text(encoding="utf-8")
    assert GENERATE["runtimes"]() == page, "run `python docs/generate.py`"


def test_the_report_page_is_up_to_date() -> None:
    page = (DOCS / "report.md").read_text(encoding="utf-8")
    assert GENERATE["report"]() == page, "run `python docs/generate.py`"


def test_the_page_of_image_models_is_up_to_date() -> None:
    page = (DOCS / "architectures_images.md").read_text(encoding="utf-8")
    assert GENERATE["images"]() == page, "run `python docs/generate.py`"


def test_check_tells_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cli.md"
    monkeypatch.setitem(GENERATE["main"].__globals__, "PAGE", page)
    for name in ("runtimes", "report", "images"):
        place = tmp_path / f"{name}.md"
        monkeypatch.setitem(GENERATE["main"].__globals__, f"{name.upper()}_PAGE", place)
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    assert GENERATE["main"]() == 1
    assert "stale" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["generate.py"])
    assert GENERATE["main"]() == 0
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    assert GENERATE["main"]() == 0


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_is_documented(command: str, option: click.Option) -> None:
    assert option.help
    section = CLI.partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    for name in (*option.opts, *option.secondary_opts):
        assert re.search(rf"^  .*{re.escape(name)}\b", section, re.MULTILINE)


@pytest.mark.parametrize("name", lora_tools.__all__)
def test_every_public_name_is_listed(name: str) -> None:
    assert re.search(rf"^\| `{name}\b", LIBRARY, re.MULTILINE)


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "fixtures" / "minilm-plain", tmp_path / "my-adapter")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


def test_commands_that_combine_and_select_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of two sections of how-to.md, on fixtures under the names that they have there."""
    page = (DOCS / "how-to.md").read_text(encoding="utf-8")
    part = page.partition("\n## Combine adapters\n")[2].partition("\n## Merge into the base\n")[0]
    part += page.partition("\n## Keep alpha's meaning\n")[2].partition("\n## DoRA\n")[0]
    blocks = [block for language, block in BLOCK.findall(part) if language == "sh"]
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    fixtures = {"my-adapter": "minilm-plain", "other-adapter": "minilm-rslora"}
    fixtures |= {"dora-adapter": "minilm-dora"}
    fixtures |= {f"checkpoint-{number}": "minilm-plain" for number in range(1, 6)}
    for name, fixture in fixtures.items():
        (tmp_path / name).symlink_to(ROOT / "fixtures" / fixture)
    state = dense.state_of(BASES["minilm-plain"]())
    dense.save_base(tmp_path / "my-base", state, torch.float32)
    dense.save_base(tmp_path / "base", state, torch.float32)
    key = "encoder.layer.0.attention.self.query.weight"
    changed = state[key] + 0.1 * torch.randn(state[key].shape)
    dense.save_base(tmp_path / "tuned", state | {key: changed}, torch.float32)
    for name in ("sdxl", "style"):
        sdxl(tmp_path / f"{name}.safetensors", 0)
    monkeypatch.chdir(tmp_path)
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line)[1:]
        out = list(takewhile(lambda word: not word.startswith("-"), words))[-1]
        assert not Path(out).exists()
        cli.main([*words, "--quiet"], standalone_mode=False)
        assert Path(out).exists()


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [*PAGES, DOCS / "generate.py"], ids=names)
def test_pages_name_no_path_of_a_machine(page: Path) -> None:
    assert not MACHINE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SESSIONS)
def test_a_page_shows_what_its_commands_print(name: str, tmp_path: Path) -> None:
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    text = (DOCS / name).read_text(encoding="utf-8")
    blocks = [block for language, block in BLOCK.findall(text) if language == "console"]
    assert blocks
    for block in blocks:
        for session in re.findall(r"^\$ lora-tools (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            arguments, shown = session
            command = [sys.executable, "-m", "lora_tools", *shlex.split(arguments)]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert timeless(done.stdout + done.stderr) == timeless(shown), arguments


def timeless(text: str) -> str:
    """Blank what no two runs have in common."""
    return re.sub(r"\d+\.\d s\b", "? s", text)


def test_decisions_have_one_numbering():
    for page in (DOCS / "decisions").glob("*.md"):
        assert page.read_text(encoding="utf-8").startswith(f"# {int(page.name[:4])}. "), page.name
