"""Diffusers computes with one combined adapter what it computes with several that are active."""

import warnings
from pathlib import Path

import pytest
import torch
from judges import judge
from pipelines import flux, unet
from safetensors.torch import load_file

from lora_tools.cli import cli

WEIGHTS = (0.7, -0.4)
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def output(model):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    model.eval()
    with torch.no_grad():
        if hasattr(model, "conv_in"):
            return model(draw(1, 4, 8, 8), 1, draw(1, 3, 8)).sample
        return model(
            hidden_states=draw(1, 5, 4),
            encoder_hidden_states=draw(1, 3, 8),
            pooled_projections=draw(1, 8),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(5, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample


def trained(model, folder: Path, seed: int, rank: int) -> Path:
    """Save an adapter as diffusers does, of a model whose factors were drawn at random."""
    peft = judge("peft")
    generator = torch.Generator().manual_seed(seed)
    config = peft.LoraConfig(r=rank, lora_alpha=3, target_modules=list(LAYERS))
    model.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_lora_adapter(str(folder))
    return folder


def load(model, folder: Path, **more) -> None:
    (file,) = folder.glob("*.safetensors")
    # What is for a pipeline has the component before its names, what a model saves has not.
    first = next(iter(load_file(file))).partition(".")[0]
    prefix = first if first in ("unet", "transformer") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one adapter already
        model.load_lora_adapter(str(folder), weight_name=file.name, prefix=prefix, **more)


@pytest.mark.parametrize("build", [unet, flux])
def test_one_combined_adapter_computes_what_two_active_ones_do(build, tmp_path):
    folders = [trained(build(), tmp_path / str(n), n, rank) for n, rank in enumerate((4, 2))]
    words = [word for weight in WEIGHTS for word in ("--weight", str(weight))]
    cli.main(
        ["combine", *map(str, folders), str(tmp_path / "out"), *words, "--quiet"],
        standalone_mode=False,
    )
    both, one = build(), build()
    plain = output(both)
    for name, folder in zip(("first", "second"), folders, strict=True):
        load(both, folder, adapter_name=name)
    both.set_adapters(["first", "second"], list(WEIGHTS))
    load(one, tmp_path / "out")
    wanted, found = output(both), output(one)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - plain).abs().max()) > 1e-3
