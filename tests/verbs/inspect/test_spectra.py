import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_tools import MaxParams, inspect, read, shrink
from lora_tools.linalg.rank import Fixed

FIXTURES = Path(__file__).parents[3] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"
FILE = "adapter_model.safetensors"


def spectral(path: Path) -> dict:
    """Inspect with spectra, through JSON as others get it."""
    return json.loads(json.dumps(inspect(read(path), spectrum=True).to_dict()))


def changed(tmp_path: Path, change) -> Path:
    """Copy the plain fixture with its tensors changed."""
    folder = tmp_path / "changed"
    shutil.copytree(PLAIN, folder)
    tensors = load_file(PLAIN / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    return folder


def dense_figures(delta: Tensor, rank: int) -> dict:
    """Return the figures of a dense update, or of a stack of them, by full decompositions."""
    s = torch.linalg.svdvals(delta)
    stacked = s.reshape(-1, s.shape[-1])
    pooled = stacked.square().sum(0).sqrt()[:rank].numpy()
    energy = np.cumsum(pooled**2) / (pooled**2).sum()
    share = pooled / pooled.sum()
    share = share[share > 1e-12]
    return {
        "norm": float(delta.norm()),
        "sigma_max": float(stacked.max()),
        "stable_rank": float((pooled**2).sum() / pooled[0] ** 2),
        "effective_rank": math.exp(-float((share * np.log(share)).sum())),
        "energy": energy,
    }


def test_figures_are_those_of_the_dense_update(adapter_path):
    adapter = read(adapter_path)
    dense = reference.deltas(adapter_path)
    document = spectral(adapter_path)
    for module, described in zip(adapter.manifest.modules, document["modules"], strict=True):
        figures, wanted = (
            described["spectrum"],
            dense_figures(dense[module.key_prefix], module.rank),
        )
        assert figures["state"] == "finite"
        for field in ("norm", "sigma_max", "stable_rank", "effective_rank"):
            assert figures[field] == pytest.approx(wanted[field], rel=1e-5), field
        assert len(figures["sigma"]) == module.rank
        for share, rank in figures["energy_ranks"].items():
            kept = rank // module.groups
            energy = np.concatenate([[0.0], wanted["energy"]])
            assert energy[kept] >= float(share) - 1e-9
            assert energy[kept - 1] < float(share) + 1e-9
    whole = math.sqrt(sum(float(delta.square().sum()) for delta in dense.values()))
    assert document["totals"]["norm"] == pytest.approx(whole, rel=1e-6)


def test_every_offer_is_what_shrink_then_does(adapter_path):
    adapter = read(adapter_path)
    uniform_ranks = spectral(adapter_path)["ranks"]
    ranks = [uniform["rank_after"] for uniform in uniform_ranks]
    assert ranks == sorted(ranks)
    assert ranks[-1] == max(module.r for module in adapter.manifest.modules)
    assert uniform_ranks[-1]["optimal_error"] < 1e-6
    for uniform in uniform_ranks:
        result = shrink(adapter, Fixed(uniform["rank_after"]))
        report = result.report("shrink")
        rows = list(report.watch(result))
        assert len(rows) == len(adapter)
        assert result.layout.size == uniform["bytes_after"]
        assert report.optimal_error == pytest.approx(uniform["optimal_error"], abs=1e-9)
        params = sum(spec.numel for spec in result.manifest.specs.values())
        shared = shrink(adapter, MaxParams(params)).report("shrink")
        list(shared.watch(shrink(adapter, MaxParams(params))))
        assert uniform["allocated_error"] == pytest.approx(
            min(shared.optimal_error, uniform["optimal_error"]), abs=1e-9
        )


def test_a_suggestion_keeps_what_it_says():
    document = spectral(FIXTURES / "minilm-patterns")
    suggestion = document["suggestion"]
    (uniform,) = (
        uniform
        for uniform in document["ranks"]
        if uniform["rank_after"] == suggestion["rank_after"]
    )
    assert suggestion["energy"] == pytest.approx(1 - uniform["optimal_error"] ** 2)
    assert suggestion["energy"] >= 0.99
    assert suggestion["arguments"].endswith(f"--rank {uniform['rank_after']}")
    smaller = [other for other in document["ranks"] if other["rank_after"] < uniform["rank_after"]]
    assert all(1 - other["optimal_error"] ** 2 < 0.99 for other in smaller)


def test_no_rank_is_suggested_where_none_is_enough():
    assert spectral(FIXTURES / "conv-mixed")["suggestion"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_found_and_the_rest_described(tmp_path, value):
    key = "base_model.model.encoder.layer.1.attention.self.query.lora_B.weight"

    def spoil(tensors):
        tensors[key][3, 2] = value

    document = spectral(changed(tmp_path, spoil))
    states = {m["module"]: m["spectrum"]["state"] for m in document["modules"]}
    assert [name for name in states if states[name] == "not finite"] == [
        "encoder.layer.1.attention.self.query"
    ]
    assert document["ranks"] == []
    assert document["suggestion"] is None
    assert document["totals"]["norm"] is None
    (problem,) = document["problems"]
    assert key in problem
    assert "NaN" not in json.dumps(document, allow_nan=False).replace("NaN or Inf", "")


def test_a_module_of_zeros_has_no_ranks(tmp_path):
    key = "base_model.model.encoder.layer.1.attention.self.query.lora_B.weight"

    def clear(tensors):
        tensors[key].zero_()

    document = spectral(changed(tmp_path, clear))
    (zero,) = (m["spectrum"] for m in document["modules"] if m["spectrum"]["state"] == "zero")
    assert zero["norm"] == 0.0
    assert zero["energy_ranks"] is None
    assert zero["stable_rank"] is None
    assert document["ranks"]


def test_an_adapter_of_zeros_offers_nothing(tmp_path):
    def clear(tensors):
        for key in tensors:
            if "lora_B" in key:
                tensors[key].zero_()

    document = spectral(changed(tmp_path, clear))
    assert document["ranks"] == []
    assert document["suggestion"] is None
    assert document["totals"]["norm"] == 0.0


def test_duplicates_are_those_whose_factors_are_equal(tmp_path):
    stem = "base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight"

    def copy(tensors):
        for part in "AB":
            tensors[stem.format(3, part)] = tensors[stem.format(0, part)].clone()
        # The same singular values, and yet another update.
        tensors[stem.format(4, "A")] = tensors[stem.format(0, "A")].clone()
        tensors[stem.format(4, "B")] = -tensors[stem.format(0, "B")]

    document = spectral(changed(tmp_path, copy))
    twins = {
        m["module"]: m["spectrum"]["duplicate_of"]
        for m in document["modules"]
        if m["spectrum"]["duplicate_of"]
    }
    assert twins == {"encoder.layer.3.attention.self.query": "encoder.layer.0.attention.self.query"}


def test_an_adapter_with_problems_gets_figures_and_no_offers(tmp_path):
    folder = changed(tmp_path, lambda tensors: tensors.popitem())
    document = json.loads(json.dumps(inspect(read(folder, strict=False), spectrum=True).to_dict()))
    assert document["problems"]
    assert document["ranks"] == []
    assert all(m["spectrum"]["state"] == "finite" for m in document["modules"])
