"""Mistakes that other tools make with scales and conversions: none of them is made here.

Each test is named for the mistake and says in whose tool it was seen. Expected numbers come from
the definitions alone: scale · B · A in float64.
"""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from reference import deltas, relative_error
from safetensors.torch import load_file, save_file
from weighted import weighted

from lora_tools.cli import cli

PREFIX = "base_model.model."
PATHS = ("model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj")


def run(*arguments: object) -> None:
    """Run a command of ours in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


def peft(
    folder: Path,
    *,
    rank: int = 16,
    true_rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    **config: object,
) -> Path:
    """Write an adapter as peft does, whose updates may have a lower rank than its factors."""
    torch.manual_seed(0)
    folder.mkdir()
    tensors = {}
    for path in PATHS:
        r = config.get("rank_pattern", {}).get(path, rank)
        low = true_rank or r
        a = (torch.randn(r, low) @ torch.randn(low, 80)) if low < r else torch.randn(r, 80)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a.to(dtype)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(70, r).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = {"r": rank, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA"} | targets | config)
    )
    return folder


def base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(1)
    folder.mkdir()
    weights = {f"{path}.weight": torch.randn(70, 80).to(dtype) for path in PATHS}
    save_file(weights, folder / "model.safetensors")
    return folder


def merged(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def kohya(folder: Path) -> dict[str, torch.Tensor]:
    """Return the updates of a kohya file: alpha / rank · up · down."""
    (file,) = folder.glob("*.safetensors")
    tensors, found = load_file(file), {}
    for key, down in tensors.items():
        stem = key.removesuffix(".lora_down.weight")
        if stem != key:
            up = tensors[f"{stem}.lora_up.weight"].double()
            alpha = tensors[f"{stem}.alpha"].double()
            found[stem] = alpha / len(down) * up.flatten(1) @ down.double().flatten(1)
    return found


# kohya, resize_lora.py


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.625, 2), (0.75, 3), (0.751, 4)])
def test_one_rank_too_many_is_kept_by_a_share(energy, rank, tmp_path):
    """kohya: every dynamic method. Energies of 4, 1, 1, 1, 1 of 8 reach each share exactly."""
    values = torch.tensor([2.0, 1, 1, 1, 1])
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{stem}.lora_down.weight": torch.eye(5, 9),
        f"{stem}.lora_up.weight": torch.eye(7, 5) * values,
        f"{stem}.alpha": torch.tensor(5.0),
    }
    file = tmp_path / "in" / "x.safetensors"
    file.parent.mkdir()
    save_file(tensors, file)
    run("shrink", file, tmp_path / "out", "--energy", energy, "--quiet")
    made = load_file(tmp_path / "out" / "x.safetensors")
    assert len(made[f"{stem}.lora_down.weight"]) == rank


def test_a_rank_above_the_modules_own_is_filled_with_noise(tmp_path):
    """kohya: a fixed rank larger than the module's."""
    source = peft(tmp_path / "a", rank=4, lora_alpha=4)
    run("shrink", source, tmp_path / "out", "--rank", 64, "--quiet")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("command", ["shrink", "convert"])
def test_the_file_is_twice_as_large_in_float32(command, dtype, tmp_path):
    """kohya: saves float32 unless told otherwise."""
    source = peft(tmp_path / "a", dtype=dtype)
    more = ["--rank", 8] if command == "shrink" else ["--to", "kohya"]
    run(command, source, tmp_path / "out", *more, "--quiet")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    factors = [tensor for key, tensor in load_file(file).items() if not key.endswith("alpha")]
    assert {tensor.dtype for tensor in factors} == {dtype}


def test_a_file_in_pefts_names_has_a_scale_of_1(tmp_path):
    """kohya: its resize takes no alpha from a configuration."""
    source = peft(tmp_path / "a")
    run("shrink", source, tmp_path / "out", "--rank", 8, "--quiet")
    report = json.loads((tmp_path / "out" / "lora_tools_report.json").read_text())
    for row in report["modules"]:
        assert row["norm"] == pytest.approx(float(deltas(source)[PREFIX + row["module"]].norm()))
    run("convert", source, tmp_path / "kohya", "--to", "kohya", "--quiet")
    found, wanted = kohya(tmp_path / "kohya"), deltas(source)
    for path in PATHS:
        stem = next(each for each in found if each.endswith(path.replace(".", "_")))
        torch.testing.assert_close(found[stem], wanted[PREFIX + path])


def test_a_core_that_no_longer_fits_is_carried_over(tmp_path):
    """kohya: lora_mid of a Tucker decomposition stays what it was beside other factors."""
    torch.manual_seed(0)
    stem = "lora_unet_mid_block_resnets_0_conv1"
    up, mid, down = torch.randn(8, 4, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(4, 6, 1, 1)
    names = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    tensors = {f"{stem}.{name}": tensor for name, tensor in names.items()}
    file = tmp_path / "in" / "x.safetensors"
    file.parent.mkdir()
    save_file(tensors | {f"{stem}.alpha": torch.tensor(2.0)}, file)
    run("shrink", file, tmp_path / "out", "--rank", 4, "--quiet")
    made = load_file(tmp_path / "out" / "x.safetensors")
    assert not any("lora_mid" in key for key in made)
    u, m, d = (each.double() for each in (up, mid, down))
    whole = torch.einsum("mnkl,im,nj->ijkl", m, u[..., 0, 0], d[..., 0, 0]) * 2 / 4
    (seen,) = kohya(tmp_path / "out").values()
    torch.testing.assert_close(seen, whole.flatten(1), rtol=1e-5, atol=1e-5)


def test_norms_of_dora_no_longer_fit(tmp_path):
    """kohya: dora_scale stays beside factors read without it. Ours are of the merged weight."""
    run("shrink", FIXTURES / "minilm-dora", tmp_path / "out", "--rank", 64, "--quiet")
    assert relative_error(deltas(FIXTURES / "minilm-dora"), deltas(tmp_path / "out")) < 1e-6
    files = (f / "adapter_model.safetensors" for f in (FIXTURES / "minilm-dora", tmp_path / "out"))
    before, after = map(load_file, files)
    norms = [key for key in before if key.endswith("lora_magnitude_vector")]
    assert norms
    assert all(torch.equal(before[key], after[key]) for key in norms)


# mergekit, extract_lora.py: what concerns extraction is in tests/verbs/extract.


def test_biases_are_written_that_the_configuration_does_not_announce(tmp_path):
    """mergekit: lora_B.bias without lora_bias, which peft then drops."""
    torch.manual_seed(0)
    stem = "unet.mid_block.attentions.0.proj_in"
    factors = {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "lora_B.bias": (4,)}
    tensors = {f"{stem}.{name}": torch.randn(shape) for name, shape in factors.items()}
    file, out = tmp_path / "in" / "x.safetensors", tmp_path / "out"
    file.parent.mkdir()
    save_file(tensors, file)
    run("convert", file, out, "--to", "peft", "--quiet")
    assert json.loads((out / "adapter_config.json").read_text())["lora_bias"] is True
    made = load_file(out / "adapter_model.safetensors")
    seen = made[f"{PREFIX}mid_block.attentions.0.proj_in.lora_B.bias"]
    assert torch.equal(seen, tensors[f"{stem}.lora_B.bias"])


# PEFT


@pytest.mark.parametrize(
    "name", ["minilm-dora", "minilm-embedding", "conv-mixed", "moe-experts", "gpt2-conv1d", "mha"]
)
def test_a_layer_that_is_not_plain_is_a_type_error(name, tmp_path):
    """peft: convert_to_lora, which needs the model, too."""
    run("shrink", FIXTURES / name, tmp_path / "out", "--rank", 64, "--quiet")
    assert relative_error(deltas(FIXTURES / name), deltas(tmp_path / "out")) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_update_is_rounded_before_it_is_added(dtype, tmp_path):
    """peft: casts it to the base's type, and rounds the sum once more."""
    source, model = peft(tmp_path / "a", lora_alpha=1), base(tmp_path / "base", dtype)
    run("merge", model, source, tmp_path / "out", "--quiet")
    before, after, updates = merged(model), merged(tmp_path / "out"), deltas(source)
    for path in PATHS:
        exact = before[f"{path}.weight"].double() + updates[PREFIX + path]
        error = (after[f"{path}.weight"].double() - exact).abs()
        nearest = (exact.to(dtype).double() - exact).abs()
        step = 1e-6 * exact.abs()  # the sum itself is formed in float32
        assert bool((error <= nearest + step).all())


SUMS = {
    "rslora-cat": ({"use_rslora": True, "rank": 4}, "cat", {}, 0.5),
    "rslora-svd": ({"use_rslora": True, "rank": 4}, "svd", {"svd_rank": 8}, 0.5),
    "linear": ({"rank": 4}, "linear", {}, 0.5),
    "linear-at-half-weight": ({"rank": 4, "lora_alpha": 2}, "linear", {}, 0.3),
}
"""How two adapters are, what method adds them, and how far off the sum is at the least."""


@pytest.mark.parametrize("name", SUMS)
def test_a_weighted_sum_of_adapters_is_another_one(name, tmp_path):
    """peft: add_weighted_adapter keeps rsLoRA and takes alpha = rank, whose scale is then its
    root; `linear` multiplies the A of one adapter by the B of another."""
    config, kind, more, least = SUMS[name]
    folders = [peft(tmp_path / "a", **config), peft(tmp_path / "b", **config)]
    tensors = load_file(folders[1] / "adapter_model.safetensors")
    turned = {key: tensor.flip(0) + 0.5 for key, tensor in tensors.items()}
    save_file(turned, folders[1] / "adapter_model.safetensors")
    run("combine", *folders, tmp_path / "out", "--weight", 1, "--weight", 0.5, "--quiet")
    first, second = map(deltas, folders)
    wanted = {path: first[path] + 0.5 * second[path] for path in first}
    assert relative_error(wanted, deltas(tmp_path / "out")) < 1e-6
    assert relative_error(wanted, weighted(folders, (1.0, 0.5), kind, **more)) > least


# sft-cli 0.2.2


def test_alpha_is_not_read_when_merging(tmp_path):
    """sft-cli: merges rank 16, alpha 32 at a scale of 1.0."""
    source, model = peft(tmp_path / "a"), base(tmp_path / "base")
    run("merge", model, source, tmp_path / "out", "--quiet")
    before, after = merged(model), merged(tmp_path / "out")
    tensors = load_file(source / "adapter_model.safetensors")
    for path in PATHS:
        a, b = (tensors[f"{PREFIX}{path}.lora_{f}.weight"].double() for f in "AB")
        added = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        torch.testing.assert_close(added, 32 / 16 * b @ a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["fold", "keep"])
def test_the_configuration_is_stale_after_a_truncation(scale, tmp_path):
    """sft-cli: leaves r and lora_alpha as they were."""
    source = peft(tmp_path / "a", true_rank=3)
    run("shrink", source, tmp_path / "out", "--rank", 3, "--scale", scale, "--quiet")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["lora_alpha"] / config["r"] == (1 if scale == "fold" else 2)
    assert relative_error(deltas(source), deltas(tmp_path / "out")) < 1e-6


def test_different_alphas_become_the_first(tmp_path):
    """sft-cli: from kohya's naming to peft's, one alpha for the whole file."""
    alphas = dict(zip(PATHS, (32, 8, 0.3), strict=True))
    source = peft(tmp_path / "a", alpha_pattern=alphas)
    run("convert", source, tmp_path / "kohya", "--to", "kohya", "--quiet")
    run("convert", tmp_path / "kohya", tmp_path / "back", "--to", "peft", "--quiet")
    before, after = deltas(source), deltas(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before)


# gradience 0.11


@pytest.mark.parametrize("scale", ["fold", "keep"])
def test_a_truncation_under_rslora_halves_the_scale(scale, tmp_path):
    """gradience: 64 → 16 keeps alpha / r, where alpha / √r is what counts."""
    source = peft(tmp_path / "a", rank=64, true_rank=16, use_rslora=True)
    run("shrink", source, tmp_path / "out", "--rank", 16, "--scale", scale, "--quiet")
    assert relative_error(deltas(source), deltas(tmp_path / "out")) < 1e-5
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    r, alpha = config["r"], config["lora_alpha"]
    found = alpha / (sqrt(r) if config["use_rslora"] else r)
    assert found == pytest.approx(1.0 if scale == "fold" else 32 / 8)


@pytest.mark.parametrize("scale", ["fold", "keep"])
@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_are_wiped(scale, rslora, tmp_path):
    """gradience: alpha_pattern and rank_pattern are emptied, whatever they said."""
    patterns = {"alpha_pattern": {PATHS[0]: 5}, "rank_pattern": {PATHS[2]: 6}}
    source = peft(tmp_path / "a", true_rank=4, use_rslora=rslora, **patterns)
    run("shrink", source, tmp_path / "out", "--rank", 4, "--scale", scale, "--quiet")
    assert relative_error(deltas(source), deltas(tmp_path / "out")) < 1e-5
    run("shrink", source, tmp_path / "less", "--rank", 8, "--scale", scale, "--quiet")
    assert relative_error(deltas(source), deltas(tmp_path / "less")) < 1e-5
    ranks = json.loads((tmp_path / "less" / "adapter_config.json").read_text())["rank_pattern"]
    assert list(ranks.values()) == [6]


# ai-toolkit and axolotl, merging


def test_a_strength_is_squared_and_factors_are_crossed(tmp_path):
    """ai-toolkit: adds A to A and B to B, each times its strength."""
    model, first = base(tmp_path / "base"), peft(tmp_path / "a")
    second = peft(tmp_path / "b", rank=4, lora_alpha=2)
    run("merge", model, first, second, tmp_path / "out", "--weight", 0.5, "--weight", -2, "--quiet")
    before, after = merged(model), merged(tmp_path / "out")
    for path in PATHS:
        wanted = 0.5 * deltas(first)[PREFIX + path] - 2 * deltas(second)[PREFIX + path]
        added = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        torch.testing.assert_close(added, wanted, rtol=1e-4, atol=1e-4)


def test_a_module_without_a_home_is_passed_over(tmp_path):
    """axolotl: warns only when no key matched at all."""
    source, model = peft(tmp_path / "a"), base(tmp_path / "base")
    weights = merged(model)
    del weights[f"{PATHS[1]}.weight"]
    save_file(weights, model / "model.safetensors")
    with pytest.raises(Exception, match=PATHS[1]):
        run("merge", model, source, tmp_path / "out", "--quiet")
    assert not (tmp_path / "out").exists()


def test_the_index_counts_tensors(tmp_path):
    """axolotl: total_size is the number of tensors, not of bytes."""
    source, model = peft(tmp_path / "a"), base(tmp_path / "base")
    run("merge", model, source, tmp_path / "out", "--max-shard-size", "40kB", "--quiet")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == len(PATHS) * 70 * 80 * np.dtype("f4").itemsize
