"""Commands in parts, as several machines with one file system run them: the bytes of one run."""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import dense
import pytest
import torch
from bases import BASES
from click.testing import CliRunner, Result
from conftest import FIXTURES
from safetensors.torch import save_file

from lora_tools.cli import cli
from lora_tools.files.parts import parts

COUNTS = [(1, ()), (3, (3,)), (7, (6,))]
"""How many parts, and which of them die half-way and are repeated."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in arguments])


def does(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def files(folder: Path) -> dict[str, bytes | dict]:
    """Return the files of a folder; a report without its times, its arguments and how it came."""
    found: dict[str, bytes | dict] = {}
    for file in folder.iterdir():
        found[file.name] = file.read_bytes()
        if file.name == "lora_tools_report.json":
            report = json.loads(file.read_text())
            report["arguments"] = ""
            for name in ("seconds", "resumed_shards"):
                report["totals"].pop(name, None)
            found[file.name] = report
        if file.name == "README.md":
            found[file.name] = file.read_bytes().count(b"\n")  # names its command and its seconds
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a fine-tune of it, with something of every kind."""
    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(1)
    base = {f"layers.{i}.lin.weight": torch.randn(40, 24 + i) for i in range(18)}
    base["norm.weight"] = torch.ones(24)
    tuned = {name: w + 0.1 * torch.randn(w.shape) for name, w in base.items()}
    tuned["layers.3.lin.weight"] = base["layers.3.lin.weight"]
    for name, state in (("base", base), ("tuned", tuned)):
        save_file(state, folder / f"{name}.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The arguments of a merge into some ten files, but for OUT."""
    folder = tmp_path_factory.mktemp("merging")
    base = dense.save_base(folder / "base", dense.state_of(BASES["minilm-plain"]()), torch.bfloat16)
    return ["merge", base, FIXTURES / "minilm-plain", "--max-shard-size", "5MB"]


READING, ADDING = "verbs.extract.tasks:difference", "verbs.merge:merge_rows"
"""What every piece of an extraction, and of a merge, needs."""


def dying(monkeypatch: pytest.MonkeyPatch, step: str, after: int) -> None:
    """Let a step fail after so many calls, as a machine that goes down would."""
    place, _, name = step.partition(":")
    module = sys.modules[f"lora_tools.{place}"]
    real, calls = getattr(module, name), [0]

    def call(*arguments, **more):
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, call)


def in_parts(
    command: list[object], out: Path, count: int, deaths: Iterable[int], step: str
) -> list[bool]:
    """Run the parts of a command in a random order, some twice; return which of them wait."""
    numbers = list(range(1, count + 1))
    order = [*numbers, *random.Random(count).sample(numbers, count // 2)]
    random.Random(count).shuffle(order)
    for number in deaths:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step, after=number % 2)
            assert run(*command, out, "--part", f"{number}/{count}", "--jobs", 1).exit_code
    found = []
    for number in order:
        done = json.loads(does(*command, out, "--part", f"{number}/{count}", "--json"))
        assert (done["part"], done["part_count"]) == (number, count)
        found.append(done["waiting"])
    return found


@pytest.mark.parametrize(("count", "deaths"), COUNTS)
@pytest.mark.parametrize(
    "policy", [("--rank", "3"), ("--max-params", "2,000"), ("--max-error", "0.6")]
)
def test_an_extraction_in_parts_is_the_extraction(
    pair, policy, count, deaths, tmp_path, monkeypatch
):
    command, place = ["extract", *pair, *policy, "--small", "full"], tmp_path / "out"
    does(*command, tmp_path / "whole")
    waiting = in_parts(command, place, count, deaths, READING)
    assert waiting[0] == (policy[0] != "--rank" and count > 1)
    assert not any(in_parts(command, place, count, (), READING))
    if policy[0] != "--max-error":  # which may lower the ranks once more
        dying(monkeypatch, READING, after=0)
    does(*command, place)
    assert files(place) == files(tmp_path / "whole")
    assert parts(place) == []


@pytest.mark.parametrize(("count", "deaths"), COUNTS)
def test_a_merge_in_parts_is_the_merge(merging, count, deaths, tmp_path, monkeypatch):
    does(*merging, tmp_path / "whole")
    place = tmp_path / "out"
    in_parts(merging, place, count, deaths, ADDING)
    dying(monkeypatch, ADDING, after=0)
    does(*merging, place)
    assert files(place) == files(tmp_path / "whole")
    assert parts(place) == []


def test_what_no_part_has_done_the_whole_does(pair, merging, tmp_path):
    for command in (["extract", *pair, "--rank", 3], merging):
        place = tmp_path / str(command[0])
        does(*command, place.with_name(f"whole-{place.name}"))
        words = does(*command, place, "--part", "2/3")
        assert "part 2/3: " in words
        assert f"next: the same {command[0]} without --part, when all parts are done" in words
        does(*command, place)
        assert files(place) == files(place.with_name(f"whole-{place.name}"))


def test_a_part_that_cannot_choose_ranks_yet_says_so(pair, tmp_path):
    words = does("extract", *pair, tmp_path / "out", "--energy", 0.9, "--part", "1/2")
    assert "the spectra, from which ranks are chosen when all parts have theirs" in words
    assert "next: the same extract again for each part, or once without --part" in words


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--part", "0/2"], "'0/2' is not I/N with I from 1 to N"),
        (["--part", "3/2"], "'3/2' is not I/N with I from 1 to N"),
        (["--part", "half"], "'half' is not I/N with I from 1 to N"),
        (["--part", "1/2", "--dry-run"], "--part and --dry-run do not go together"),
        (["--part", "1/2", "--force"], "--part and --force do not go together"),
        (["--part", "1/2", "--no-resume"], "--part and --no-resume do not go together"),
        (["--part", "1/2", "--push-to", "a/b", "--public"], "OUT, which --part does not write"),
    ],
)
def test_what_does_not_go_with_a_part(pair, tmp_path, more, why):
    done = run("extract", *pair, tmp_path / "out", "--rank", 2, *more)
    assert done.exit_code == 2
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_parts_of_another_merge_are_refused(merging, tmp_path):
    does(*merging, tmp_path / "out", "--part", "1/2")
    done = run(*merging, tmp_path / "out", "--weight", 0.5)
    assert done.exit_code == 1
    assert "was begun with other" in str(done.exception) + done.stderr
    assert parts(tmp_path / "out")


def test_a_device_is_no_part_of_what_was_begun(pair, tmp_path, gpu):
    """What was begun on a GPU is finished without one."""
    with gpu:
        does("extract", *pair, tmp_path / "out", "--rank", 3, "--device", "cuda", "--part", "1/2")
    does("extract", *pair, tmp_path / "out", "--rank", 3)
    report = json.loads((tmp_path / "out" / "lora_tools_report.json").read_text())
    assert report["totals"]["outcomes"]["extracted"] == 17
