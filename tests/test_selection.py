"""Selections: patterns of names, and of the blocks that users of Stable Diffusion's LoRAs know."""

from dataclasses import replace

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file, save_file

from lora_tools import read
from lora_tools.cli import cli
from lora_tools.errors import PolicyError
from lora_tools.selection import ModuleWeight, Selection

ATTENTION = "transformer_blocks_0_attn1_to_q"
SDXL = {
    "IN04": (f"input_blocks_4_1_{ATTENTION}", f"down_blocks_1_attentions_0_{ATTENTION}"),
    "IN05": (f"input_blocks_5_1_{ATTENTION}", f"down_blocks_1_attentions_1_{ATTENTION}"),
    "IN08": (f"input_blocks_8_1_{ATTENTION}", f"down_blocks_2_attentions_1_{ATTENTION}"),
    "MID": (f"middle_block_1_{ATTENTION}", f"mid_block_attentions_0_{ATTENTION}"),
    "OUT00": (f"output_blocks_0_1_{ATTENTION}", f"up_blocks_0_attentions_0_{ATTENTION}"),
    "OUT05": (f"output_blocks_5_1_{ATTENTION}", f"up_blocks_1_attentions_2_{ATTENTION}"),
}
"""Blocks of SDXL, and a module of each under the original names and under diffusers'."""
WIDE = ("IN08", "MID", "OUT00")
ENCODER = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def sdxl(path, naming):
    """Write a LoRA of SDXL as kohya's trainer does, with one of its text encoders."""
    modules = {block: f"lora_unet_{names[naming]}" for block, names in SDXL.items()}
    modules["BASE"] = ENCODER
    tensors = {}
    for block, name in modules.items():
        size = 1280 if block in WIDE else 640
        tensors |= {
            f"{name}.lora_down.weight": torch.randn(2, size),
            f"{name}.lora_up.weight": torch.randn(size, 2),
            f"{name}.alpha": torch.tensor(2.0),
        }
    save_file(tensors, path)
    return modules


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
