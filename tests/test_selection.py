"""Selections: patterns of names, and of the blocks that users of Stable Diffusion's LoRAs know."""

from dataclasses import replace

import pytest
from conftest import FIXTURES
from safetensors.torch import load_file
from sdxl_blocks import sdxl

from lora_tools import read
from lora_tools.cli import cli
from lora_tools.errors import PolicyError
from lora_tools.selection import ModuleWeight, Selection


def run(*arguments):
    cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.mark.parametrize("naming", [0, 1])
def test_blocks_are_weighed_by_the_names_that_their_users_have(naming, tmp_path):
    """Whatever dialect a file has: the same block is the same."""
    modules = sdxl(tmp_path / "x.safetensors", naming)
    weights = {"IN0[45]": 0.5, "MID": 0.0, "M00": 3.0, "OUT05": 2.0, "BASE": 0.25}
    more = [f"--module-weight={pattern}={weight}" for pattern, weight in weights.items()]
    run("convert", tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--to", "kohya", *more)
    alphas = load_file(tmp_path / "y.safetensors")
    found = {block: float(alphas[f"{name}.alpha"]) / 2 for block, name in modules.items()}
    assert found == {
        "IN04": 0.5,
        "IN05": 0.5,
        "IN08": 1.0,
        "MID": 3.0,
        "OUT00": 1.0,
        "OUT05": 2.0,
        "BASE": 0.25,
    }


@pytest.mark.parametrize("command", ["shrink", "combine"])
def test_every_command_knows_the_blocks(command, tmp_path):
    modules = sdxl(tmp_path / "x.safetensors", 0)
    run(command, tmp_path / "x.safetensors", tmp_path / "out", "--rank", 2, "--only", "IN*")
    left = load_file(next((tmp_path / "out").glob("*.safetensors")))
    kept = {modules[block] for block in ("IN04", "IN05", "IN08")}
    assert {key.partition(".")[0] for key in left} == kept


def test_weights_of_one_adapter_know_the_blocks(tmp_path):
    for naming in range(2):
        sdxl(tmp_path / f"{naming}.safetensors", 0)
    sources = [tmp_path / f"{naming}.safetensors" for naming in range(2)]
    run("combine", *sources, tmp_path / "out", "--module-weight", "2:OUT*=0", "--quiet")
    ranks = {m.name: m.rank for m in read(tmp_path / "out").manifest.modules}
    assert all(
        rank == (2 if "up_blocks" in name or "output" in name else 4)
        for name, rank in ranks.items()
    )


def test_a_model_whose_blocks_have_no_names_says_so():
    modules = read(FIXTURES / "minilm-plain").manifest.modules
    with pytest.raises(PolicyError, match="no module matches IN04"):
        Selection(only=("IN04",)).check([modules])


def test_only_patterns_that_are_no_names_are_looked_up(monkeypatch):
    """What every pattern answers by name costs no detection."""
    import lora_tools.selection as selection

    def refuse(modules):
        raise AssertionError

    monkeypatch.setattr(selection, "named_blocks", refuse)
    modules = read(FIXTURES / "minilm-plain").manifest.modules
    found = Selection(weights=(ModuleWeight("query", 2.0),)).of(modules)
    assert {w for n, w in found.items() if n.endswith("query")} == {2.0}


def test_names_come_first():
    """A module that is called as a block is means itself."""
    module = read(FIXTURES / "minilm-plain").manifest.modules[0]
    found = Selection(drop=("IN04",)).of([replace(module, name="unet.IN04")])
    assert found == {"unet.IN04": 0.0}
