"""PEFT's add_weighted_adapter as a judge, where it is right: plain LoRA of one scale."""

import json

import pytest
import torch
from reference import deltas
from safetensors.torch import save_file
from weighted import weighted

from lora_tools.cli import cli

PREFIX = "base_model.model."
SHAPES = {"layers.0.q_proj": (24, 20), "layers.1.q_proj": (24, 20), "layers.0.up": (30, 20)}


def adapter(folder, seed, rank, alpha=None, **config):
    """Write an adapter as peft does, at a scale of 1 if nothing else is said."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for path, (out, inp) in SHAPES.items():
        r = config.get("rank_pattern", {}).get(path, rank)
        for name, shape in (("lora_A", (r, inp)), ("lora_B", (out, r))):
            tensors[f"{PREFIX}{path}.{name}.weight"] = torch.randn(shape, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha or rank}
    targets = {"target_modules": list(SHAPES)}
    (folder / "adapter_config.json").write_text(json.dumps(fields | targets | config))
    return folder


def ours(folders, weights, out, *more):
    """Return the dense update of each module that the command makes of adapters."""
    words = [word for weight in weights for word in ("--weight", str(weight))]
    arguments = ["combine", *map(str, folders), str(out), *words, *more, "--quiet"]
    cli.main(arguments, standalone_mode=False)
    return deltas(out)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
def test_cat_is_the_sum(weights, tmp_path):
    folders = [adapter(tmp_path / "a", 0, 4), adapter(tmp_path / "b", 1, 3)]
    theirs, found = weighted(folders, weights, "cat"), ours(folders, weights, tmp_path / "out")
    for name, delta in found.items():
        torch.testing.assert_close(delta, theirs[name], rtol=1e-4, atol=1e-5)


def test_svd_is_the_truncated_sum(tmp_path):
    folders = [adapter(tmp_path / "a", 0, 4), adapter(tmp_path / "b", 1, 4)]
    theirs = weighted(folders, (0.6, 0.4), "svd", svd_rank=5, svd_clamp=None)
    found = ours(folders, (0.6, 0.4), tmp_path / "out", "--rank", "5")
    for name, delta in found.items():
        torch.testing.assert_close(delta, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["ties", "magnitude"])
def test_rules_on_dense_updates_are_those_of_peft(method, tmp_path):
    """At equal weights: PEFT elects the signs of TIES before it weighs the updates."""
    folders = [adapter(tmp_path / "a", 0, 4), adapter(tmp_path / "b", 1, 4)]
    kind = {"ties": "ties_svd", "magnitude": "magnitude_prune_svd"}[method]
    theirs = weighted(folders, (1.0, 1.0), kind, svd_rank=5, density=0.5)
    more = ("--method", method, "--set", "density=0.5", "--rank", "5")
    found = ours(folders, (1.0, 1.0), tmp_path / "out", *more)
    for name, delta in found.items():
        torch.testing.assert_close(delta, theirs[name], rtol=1e-3, atol=1e-4)
