"""The command: what it prints, writes and refuses."""

import json

import pytest
import torch
from conftest import FIXTURES
from reference import deltas
from safetensors.torch import load_file

from lora_tools.cli import cli
from lora_tools.errors import OutputError, PolicyError

PLAIN, RSLORA = FIXTURES / "minilm-plain", FIXTURES / "minilm-rslora"


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("more", "weights"),
    [
        ((), (1, 1)),
        (("--weight", "0.7", "--weight", "-0.3"), (0.7, -0.3)),
        (("--average",), (0.5, 0.5)),
        (("--ema", "0.9"), (0.9, 0.1)),
        (("--module-weight", "query=0.5", "--module-weight", "2:query=2"), None),
    ],
)
def test_weights_are_given_in_one_way_or_another(more, weights, tmp_path, capsys):
    run("combine", PLAIN, RSLORA, tmp_path / "out", *more, "--dtype", "float32")
    first, second, found = map(deltas, (PLAIN, RSLORA, tmp_path / "out"))
    assert found.keys() == first.keys() | second.keys()
    for name, delta in found.items():
        x, y = weights or ((0.5, 2) if "query" in name else (1, 1))
        wanted = x * first.get(name, 0) + y * second.get(name, 0)
        torch.testing.assert_close(delta, wanted, rtol=1e-5, atol=1e-6)
    assert "written to" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "lora_tools_report.json").read_text())
    assert report["schema"] == "lora-tools/combine/1"
    assert report["arguments"]
    assert "combine" in (tmp_path / "out" / "README.md").read_text()


def test_a_policy_lowers_ranks(tmp_path, capsys):
    run("combine", PLAIN, RSLORA, tmp_path / "out", "--rank", "4", "--json")
    report = json.loads(capsys.readouterr().out)
    assert {row["rank_after"] for row in report["modules"]} == {4}
    assert report["policy"] == "rank 4"
    half = tmp_path / "half"
    run("combine", PLAIN, RSLORA, half, "--max-params", "50%", "--quiet")
    whole = sum(
        t.numel()
        for f in (PLAIN, RSLORA)
        for t in load_file(f / "adapter_model.safetensors").values()
    )
    kept = sum(t.numel() for t in load_file(half / "adapter_model.safetensors").values())
    assert 0.4 * whole < kept <= 0.5 * whole


def test_a_file_in_another_format(tmp_path):
    run("combine", PLAIN, RSLORA, tmp_path / "x.safetensors", "--to", "kohya", "--quiet")
    assert any(key.endswith(".lora_down.weight") for key in load_file(tmp_path / "x.safetensors"))


def test_modules_are_selected(tmp_path, capsys):
    run(
        "combine", PLAIN, RSLORA, tmp_path / "out", "--only", "query", "--drop-modules", "layer.0.*"
    )
    names = set(deltas(tmp_path / "out"))
    assert len(names) == 5
    assert all("query" in name and "layer.0." not in name for name in names)
    assert "removed: encoder.layer.0.attention.self.query (" in capsys.readouterr().out


def test_what_contradicts_itself_is_a_usage_error(tmp_path):
    import click

    for more in (
        ("--average", "--ema", "0.5"),
        ("--weight", "1", "--weight", "1", "--average"),
        ("--min-rank", "2"),
        ("--module-weight", "x"),
    ):
        with pytest.raises(click.UsageError):
            run("combine", PLAIN, RSLORA, tmp_path / "out", *more)
    with pytest.raises(PolicyError, match="1 --weight for 2 adapters"):
        run("combine", PLAIN, RSLORA, tmp_path / "out", "--weight", "1")
    with pytest.raises(click.UsageError, match="OUT is a folder"):
        run("combine", PLAIN, RSLORA, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_no_input_is_replaced(tmp_path):
    run("combine", PLAIN, RSLORA, tmp_path / "out", "--quiet")
    with pytest.raises(OutputError):
        run("combine", PLAIN, tmp_path / "out", tmp_path / "out", "--force", "--quiet")


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    run("combine", PLAIN, RSLORA, tmp_path / "out", "--dry-run")
    assert "nothing written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
