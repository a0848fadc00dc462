"""What a selection leaves of an adapter, by the commands that take one."""

import json
import pickle

import pytest
import torch
from conftest import FIXTURES
from reference import deltas
from safetensors.torch import load_file, save_file

from lora_tools import read
from lora_tools.cli import cli
from lora_tools.errors import PolicyError, UnsupportedError
from lora_tools.rewrite import keep
from lora_tools.rewrite.selection import selected
from lora_tools.rewrite.source import source
from lora_tools.selection import ModuleWeight, Selection

PLAIN = FIXTURES / "minilm-plain"
COMMANDS = {
    "shrink": ("--rank", "64", "--scale", "keep"),
    "convert": ("--to", "peft"),
}


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_modules_are_removed_and_listed_with_their_share(command, tmp_path, capsys):
    more = ("--drop-modules", "query", "--only", "layer.[0-3].*", "--json")
    run(command, PLAIN, tmp_path / "out", *COMMANDS[command], *more)
    report = json.loads(capsys.readouterr().out)
    before, after = deltas(PLAIN), deltas(tmp_path / "out")
    kept = [name for name in before if "value" in name and int(name.split(".")[4]) < 4]
    assert after.keys() == {*kept}
    assert all(torch.equal(before[name], after[name]) for name in after)
    whole = sum(float(delta.square().sum()) for delta in before.values()) ** 0.5
    assert len(report["removed"]) + len(after) == len(before)
    for name, share in report["removed"].items():
        assert share == pytest.approx(float(before[f"base_model.model.{name}"].norm()) / whole)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {f"base_model.model.{name}" for name in config["target_modules"]} == after.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_updates_are_multiplied_without_rounding(command, tmp_path):
    more = ("--module-weight", "*=3", "--module-weight", "query=-0.5", "--quiet")
    run(command, PLAIN, tmp_path / "out", *COMMANDS[command], *more)
    before, after = deltas(PLAIN), deltas(tmp_path / "out")
    for name, delta in before.items():
        torch.testing.assert_close(
            after[name], (-0.5 if "query" in name else 3) * delta, rtol=1e-15, atol=0
        )


def test_a_truncation_is_that_of_the_weighted_updates(tmp_path):
    run(
        "shrink",
        PLAIN,
        tmp_path / "out",
        "--max-error",
        "0.3",
        "--module-weight",
        "query=0.1",
        "--quiet",
    )
    wanted = {n: (0.1 if "query" in n else 1) * d for n, d in deltas(PLAIN).items()}
    after = deltas(tmp_path / "out")
    lost = sum(float((wanted[name] - after[name]).square().sum()) for name in wanted)
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    assert lost <= 0.09 * whole


def test_the_text_encoder_goes(tmp_path, capsys):
    """SDXL without its text encoders, whose biases go, too."""
    names = [
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    ]
    tensors = {}
    for name in names:
        tensors |= {
            f"{name}.lora_down.weight": torch.randn(2, 6),
            f"{name}.lora_up.weight": torch.randn(4, 2),
            f"{name}.alpha": torch.tensor(2.0),
            f"{name}.diff_b": torch.randn(4),
        }
    save_file(tensors, tmp_path / "x.safetensors")
    run(
        "convert",
        tmp_path / "x.safetensors",
        tmp_path / "y.safetensors",
        "--to",
        "kohya",
        "--text-encoder",
        "drop",
    )
    after = load_file(tmp_path / "y.safetensors")
    assert after.keys() == {key for key in tensors if key.startswith(names[0])}
    assert all(torch.equal(after[key], tensors[key]) for key in after)
    assert "removed: text_encoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    "selection",
    [
        Selection(only=("dense",)),
        Selection(drop=("dense",)),
        Selection(weights=(ModuleWeight("dense", 2.0),)),
        Selection(text_encoder=False),
    ],
)
def test_what_matches_nothing_is_refused(selection):
    with pytest.raises(PolicyError, match="no module"):
        selected(source(read(PLAIN)), selection)


def test_what_leaves_nothing_is_refused():
    with pytest.raises(UnsupportedError, match="no module is left"):
        selected(source(read(PLAIN)), Selection(drop=("*",)))
    with pytest.raises(PolicyError, match="nan"):
        Selection(weights=(ModuleWeight("query", float("nan")),))


def test_dora_has_no_weight_but_may_be_removed():
    of = source(read(FIXTURES / "minilm-dora"))
    with pytest.raises(UnsupportedError, match="normalised after"):
        selected(of, Selection(weights=(ModuleWeight("query", 2.0),)))
    kept = selected(of, Selection(drop=("query",)))
    assert all(change.row.outcome == "kept" for change in keep(kept))


def test_a_job_of_a_selection_is_an_address():
    of = selected(
        source(read(PLAIN)), Selection(drop=("query",), weights=(ModuleWeight("value", -2.0),))
    )
    jobs = keep(of).jobs
    for job in jobs:
        data = pickle.dumps(job)
        assert len(data) < 4096
        again = pickle.loads(data)
        assert (again.source.update(job.module).b == of.update(job.module).b).all()
