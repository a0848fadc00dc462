"""What commands import. Whatever a run does not need is a cost of every run, so it stays out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_tools.cli import COMMANDS

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN, OTHER = FIXTURES / "minilm-plain", FIXTURES / "minilm-rslora"

COMPUTING = {"numpy", "torch"}
DRAWING = {"matplotlib", "plotly", "jinja2", "lora_tools.page", "lora_tools.plot.figure"}
HUB = {"huggingface_hub", "httpx2", "lora_tools.hub.reading", "lora_tools.verbs.push"}
FAMILIES = {"lora_tools.architectures.families.llama"}
"""One of them: they come all at once."""
RUNTIMES = {"lora_tools.runtimes"}
PUBLISHING = {"lora_tools.cli.publication"}
SLOW = {"email", "importlib.metadata", "socket", "statistics", "yaml", "zipfile"}
"""Modules of Python and of others that take as long as a header to read. A table, which is
tabulate's, brings some of them: `--json` has none."""
HASHES = {"hashlib"}
"""As slow, and needed by what resumes, by what draws numbers and by what publishes."""

RUN = """
import json, sys
from lora_tools.cli import cli
try:
    cli.main(sys.argv[2:], standalone_mode=False)
finally:
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def imported(list_file: Path, *arguments: object) -> set[str]:
    """Return the modules that a command has imported at its end."""
    words = [sys.executable, "-c", RUN, str(list_file), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(list_file.read_text()))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a base that the fixtures fit, and a fine-tune of it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    names = [
        f"encoder.layer.{i}.attention.self.{part}.weight"
        for i in range(6)
        for part in ("query", "key", "value")
    ]
    base = {name: torch.randn(384, 384) for name in names}
    tuned = base | {names[0]: base[names[0]] + torch.randn(384, 1) @ torch.randn(1, 384)}
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_but_the_command_line(command, tmp_path):
    found = imported(tmp_path / "modules", command, "--help")
    assert sorted(found & (COMPUTING | DRAWING | HUB | FAMILIES | RUNTIMES | SLOW)) == []


@pytest.mark.parametrize("options", [("--json",), ("--json", "--full")])
def test_an_inspected_header_needs_the_formats_alone(options, tmp_path):
    found = imported(tmp_path / "modules", "inspect", PLAIN, *options)
    assert sorted(found & (COMPUTING | DRAWING | HUB | FAMILIES | RUNTIMES | SLOW | HASHES)) == []
    assert sorted(found & {"lora_tools.linalg", "lora_tools.matching", "lora_tools.rewrite"}) == []


def test_the_rules_of_runtimes_come_with_for_them(tmp_path):
    found = imported(tmp_path / "modules", "inspect", PLAIN, "--for", "peft")
    assert found > RUNTIMES
    assert sorted(found & (COMPUTING | DRAWING | HUB)) == []


def test_an_extraction_knows_no_runtime(models, tmp_path):
    arguments = ("extract", *models, tmp_path / "out", "--rank", 1, "--json")
    found = imported(tmp_path / "modules", *arguments)
    assert sorted(found & ({"torch"} | DRAWING | HUB | PUBLISHING | RUNTIMES | SLOW)) == []


def test_a_merge_by_name_into_a_model_without_a_head_needs_no_family(models, tmp_path):
    found = imported(tmp_path / "modules", "merge", models[0], PLAIN, tmp_path / "out", "--json")
    assert sorted(found & ({"torch"} | DRAWING | FAMILIES | HUB | PUBLISHING | RUNTIMES)) == []


def test_adapters_that_are_rewritten_or_compared_need_no_family_and_no_runtime(tmp_path):
    unneeded = DRAWING | HUB | FAMILIES | RUNTIMES | PUBLISHING
    found = imported(tmp_path / "modules", "shrink", PLAIN, tmp_path / "out", "--rank", 4)
    assert sorted(found & unneeded) == []
    found = imported(tmp_path / "modules", "diff", PLAIN, PLAIN, "--json")
    assert sorted(found & (unneeded | SLOW | HASHES)) == []
