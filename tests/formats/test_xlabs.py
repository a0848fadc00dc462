"""XLabs' processors of Flux's blocks: what x-flux computes with them, on which rows of weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.verbs.convert import convert

WIDE = 8
SHAPES = {"qkv": (3 * WIDE, WIDE), "proj": (WIDE, 5 * WIDE)}
SINGLE = "single_blocks.7.processor"


@pytest.fixture
def source(tmp_path):
    """A single block's processor, and what it adds to rows of the weights (x-flux's forward)."""
    torch.manual_seed(0)
    tensors = {}
    for what, (out, inp) in SHAPES.items():
        tensors[f"{SINGLE}.{what}_lora.down.weight"] = torch.randn(2, inp)
        tensors[f"{SINGLE}.{what}_lora.up.weight"] = torch.randn(out, 2)
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    return file, {
        what: tensors[f"{SINGLE}.{what}_lora.up.weight"].double()
        @ tensors[f"{SINGLE}.{what}_lora.down.weight"].double()
        for what in SHAPES
    }


def converted(file, folder, target):
    folder.mkdir()
    plan = convert(read(file), format_named(target))
    outcome = plan.report("convert")
    write(folder, plan.manifest, outcome.watch(plan), like=read(file), format=plan.source.format)
    return outcome, read(folder)


def dense(adapter, name):
    return torch.as_tensor(adapter[name].dense("float64"))


def test_single_blocks_are_read_as_the_layers_they_update(source):
    file, wanted = source
    adapter = read(file)
    parts = [f"transformer.single_transformer_blocks.7.attn.to_{x}" for x in "qkv"]
    assert set(adapter) == {*parts, "diffusion_model.single_blocks.7.linear2"}
    assert torch.equal(torch.cat([dense(adapter, part) for part in parts]), wanted["qkv"])
    assert torch.equal(dense(adapter, "diffusion_model.single_blocks.7.linear2"), wanted["proj"])


def test_to_diffusers_nothing_changes_but_names(source, tmp_path):
    file, wanted = source
    outcome, made = converted(file, tmp_path / "diffusers", "diffusers")
    assert outcome.error == 0
    block = "transformer.single_transformer_blocks.7."
    parts = torch.cat([dense(made, f"{block}attn.to_{x}") for x in "qkv"])
    assert torch.equal(parts, wanted["qkv"])
    assert torch.equal(dense(made, f"{block}proj_out"), wanted["proj"])


def test_to_comfyui_the_rows_of_the_mlp_are_zeros(source, tmp_path):
    file, wanted = source
    outcome, made = converted(file, tmp_path / "comfyui", "comfyui")
    assert outcome.error == 0
    block = "diffusion_model.single_blocks.7."
    whole = dense(made, f"{block}linear1")
    assert whole.shape == (7 * WIDE, WIDE)
    assert torch.equal(whole[: 3 * WIDE], wanted["qkv"])
    assert not whole[3 * WIDE :].any()
    (made_file,) = (tmp_path / "comfyui").glob("*.safetensors")
    a = load_file(made_file)[f"{block}linear1.lora_A.weight"]
    assert len(a) == 2, "the three share their A, so that the rank stays"
    assert torch.equal(dense(made, f"{block}linear2"), wanted["proj"])


def test_parts_are_not_written_as_xlabs_again(source):
    file, _ = source
    with pytest.raises(UnsupportedError, match=r"no processors for.*to_q") as caught:
        convert(read(file), format_named("xlabs"))
    assert "--to diffusers" in caught.value.__notes__[0]


def test_rows_that_are_not_three_layers_are_refused(tmp_path):
    key = f"{SINGLE}.qkv_lora"
    tensors = {f"{key}.down.weight": torch.ones(2, 8), f"{key}.up.weight": torch.ones(25, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="qkv_lora: 25 rows are not those of such a processor"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "odd", ["single_blocks.0.processor.qkv_lora1", "double_blocks.0.processor.qkv_lora"]
)
def test_streams_are_of_double_blocks_only(odd, tmp_path):
    tensors = {f"{odd}.down.weight": torch.ones(2, 8), f"{odd}.up.weight": torch.ones(24, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FormatError):
        read(tmp_path / "x.safetensors")
