"""A base and a fine-tune in two dialects of their family, held against dense float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny
import torch
import whole
from dialects import converted, numbers_in, tensors_of
from safetensors.torch import save_file
from torch import Tensor

from lora_tools import Fixed
from lora_tools.adapter import REPORT
from lora_tools.architectures.families import family
from lora_tools.errors import NonFiniteError
from lora_tools.verbs.extract import ExtractReport, extract, plan

State = dict[str, Tensor]
HEADS = {"heads": 4, "kv_heads": 2}


def save(folder: Path, state: State, config: dict | None = None) -> Path:
    folder.mkdir()
    save_file({name: w.contiguous() for name, w in state.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(base: Path, tuned: Path, out: Path, rank: int = 4) -> ExtractReport:
    with extract(plan(base, tuned), Fixed(rank), out) as extraction:
        report = extraction.run()
        report.save(extraction.place / REPORT)
    return report


def noisy(state: State, rank: int = 2) -> State:
    torch.manual_seed(2)
    return {name: weight + tiny.noise(weight, rank) for name, weight in state.items()}


def in_dialect(state: State, name: str, source: str, target: str) -> State:
    """Return a checkpoint in another dialect, by the table alone."""
    return tensors_of(converted(numbers_in(state), family(name), source, target, HEADS))


def check(report: ExtractReport, out: Path, changes: State) -> None:
    """Hold every update of an adapter, in the base's layout, against a dense difference."""
    found = dict.fromkeys(changes, 0)
    updates = reference.deltas(out)
    for row in report.extracted:
        weight = row.module if row.module in changes else f"{row.module}.weight"
        change = changes[weight].double()
        *_, update = (updates[key] for key in stems(row.module, updates))
        turned = update.shape != change.shape and update.ndim == 2
        update = update.T if turned and update.T.shape == change.shape else update
        gap = (change - update.reshape(change.shape)).norm() / change.norm()
        assert float(gap) == pytest.approx(row.error, abs=1e-5), row.module
        assert float(row.error) < 1e-4, row.module
        found[weight] += 1
    matrices = {name for name, change in changes.items() if change.ndim > 1}
    assert {name for name, count in found.items() if count} == matrices


def stems(module: str, updates: dict[str, Tensor]) -> list[str]:
    """Return the key prefix of a module: of two stacks of experts, the first is nested."""
    path = f"base_model.model.{module}"
    experts, _, leaf = path.rpartition(".")
    nested = f"{experts}.base_layer" if leaf == "gate_up_proj" else experts
    return [path if path in updates else nested]


LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def llama() -> State:
    torch.manual_seed(0)
    model = tiny.auto("llama").from_config(tiny.config("llama"))
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("dialect", ["bare", "fused", "meta", "torchtune", "gguf", "litgpt"])
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("stated", ["both", "base"])
def test_llama_in_the_names_of_another_tool(llama, dialect, side, stated, tmp_path):
    """Fused and split, and rows in rotating pairs; the tuned model may have no configuration."""
    state = llama
    if dialect == "bare":  # which is a model without its head
        state = {name: weight for name, weight in llama.items() if name != "lm_head.weight"}
    tuned = noisy(state)
    other = (in_dialect(s, "Llama", "transformers", dialect) for s in (state, tuned))
    before, after = other
    if side == "tuned":
        changes = {name: tuned[name] - state[name] for name in state}
        pair = state, after
    else:
        changes = {name: after[name] - before[name] for name in before}
        pair = before, tuned
    configs = LLAMA, LLAMA if stated == "both" else None
    folders = [
        save(tmp_path / name, weights, config)
        for name, weights, config in zip("ab", pair, configs, strict=True)
    ]
    report = run(*folders, tmp_path / "out", 8)
    assert not report.unmatched
    assert report.compared.base == report.compared.tuned == 1
    assert report.notes
    check(report, tmp_path / "out", changes)


def test_rows_that_only_a_head_count_orders_are_not_guessed(llama, tmp_path):
    """Without a configuration nobody knows how Meta's queries lie: they are listed, with why."""
    tuned = noisy(llama)
    after = in_dialect(tuned, "Llama", "transformers", "meta")
    report = run(save(tmp_path / "a", llama), save(tmp_path / "b", after), tmp_path / "out", 4)
    lost = {n for n in llama if n.endswith(("q_proj.weight", "k_proj.weight"))}
    assert {row.tensor for row in report.unmatched if row.side == "base"} == lost
    reasons = {row.reason for row in report.unmatched if row.side == "tuned"}
    assert all("depends on" in reason and "heads of the base" in reason for reason in reasons)
    check(report, tmp_path / "out", {n: tuned[n] - llama[n] for n in llama if n not in lost})


MIXTRAL = {"model_type": "mixtral", "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("stated", [True, False])
def test_stacked_experts_and_experts_one_by_one(side, stated, tmp_path):
    torch.manual_seed(0)
    model = tiny.auto("mixtral").from_config(tiny.config("mixtral"))
    stack = {name: weight.clone() for name, weight in model.state_dict().items()}
    single = in_dialect(stack, "Mixtral", "stacked", "transformers")
    assert any(".experts.2.w3." in name for name in single)
    tuned = noisy(stack)
    apart = in_dialect(tuned, "Mixtral", "stacked", "transformers")
    config = MIXTRAL if stated else None
    pair = (stack, apart) if side == "tuned" else (single, tuned)
    folders = [save(tmp_path / n, w, config) for n, w in zip("ab", pair, strict=True)]
    report = run(*folders, tmp_path / "out", 4)
    assert not report.unmatched
    routers = [row for row in report.rows if row.outcome == "left out" and "router" in row.reason]
    assert len(routers) == 2
    in_stacks = side == "tuned" or stated  # which is how transformers 5 has Mixtral in memory
    state = stack if in_stacks else single
    other = tuned if in_stacks else apart
    changes = {n: other[n] - w for n, w in state.items() if not n.endswith(".gate.weight")}
    check(report, tmp_path / "out", changes)


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_the_names_of_transformers_4_and_5(llama, side, tmp_path):
    tower = {
        f"vision_tower.encoder.layers.{i}.mlp.fc1.weight": torch.randn(24, 16) for i in range(2)
    }
    four = {f"language_model.{name}": weight for name, weight in llama.items()} | tower
    five = {
        (name if name.startswith("lm_head") else name.replace("model.", "model.language_model.")): w
        for name, w in llama.items()
    } | {f"model.{name}": weight for name, weight in tower.items()}
    pair = (four, noisy(five)) if side == "base" else (five, noisy(four))
    config = {"model_type": "llava", "text_config": LLAMA}
    folders = [save(tmp_path / n, w, config) for n, w in zip("ab", pair, strict=True)]
    report = run(*folders, tmp_path / "out", 4)
    assert not report.unmatched
    changes = {
        new: pair[1][new if side == "base" else old] - pair[0][old if side == "base" else new]
        for old, new in zip(four, five, strict=True)
    }
    check(report, tmp_path / "out", changes)  # in the names of transformers 5 in either case


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_text_model_and_its_vision_language_model(llama, side, tmp_path):
    """What one of them lacks is listed and counts; what both have is compared."""
    tower = {
        f"model.vision_tower.encoder.layers.{i}.mlp.fc1.weight": torch.randn(24, 16)
        for i in range(2)
    }
    names = {
        name: name
        if name.startswith("lm_head")
        else name.replace("model.", "model.language_model.")
        for name in llama
    }
    both = {"model_type": "llava", "text_config": LLAMA}
    tuned = noisy(llama)
    many = {names[n]: w for n, w in (llama if side == "base" else tuned).items()} | tower
    pair = (many, tuned) if side == "base" else (llama, many)
    configs = (both, LLAMA) if side == "base" else (LLAMA, both)
    folders = [
        save(tmp_path / n, w, config) for n, w, config in zip("ab", pair, configs, strict=True)
    ]
    report = run(*folders, tmp_path / "out", 4)
    assert [(row.tensor, row.side) for row in report.unmatched] == [(n, side) for n in tower]
    elements = {s: sum(w.numel() for w in p.values()) for s, p in zip("bt", pair, strict=True)}
    lacking = sum(weight.numel() for weight in tower.values())
    share = 1 - lacking / elements["b" if side == "base" else "t"]
    assert getattr(report.compared, side) == pytest.approx(share)
    named = names if side == "base" else {name: name for name in llama}
    check(report, tmp_path / "out", {named[n]: tuned[n] - llama[n] for n in llama})
    assert "are in no error" in report.summary()
    assert len(report.to_dict()["unmatched_tensors"]) == len(tower)


def test_a_stable_diffusion_file_and_the_folder_of_its_unet(tmp_path):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        norm_num_groups=4,
        layers_per_block=2,
        cross_attention_dim=768,
        block_out_channels=(4, 4, 8, 8),
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    fine = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    tuned = noisy(fine)
    name = "Stable Diffusion 1 and 2"
    before, after = (in_dialect(s, name, "diffusers", "original") for s in (fine, tuned))
    unet = "model.diffusion_model."
    beside = {
        "first_stage_model.decoder.conv_in.weight": torch.randn(8, 4, 3, 3),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.randn(
            8, 4
        ),
    }
    single = {unet + key: weight for key, weight in before.items()} | beside
    base = save(tmp_path / "base", single)
    folder = save(tmp_path / "unet", tuned, {"_class_name": "UNet2DConditionModel"})
    report = run(base, folder, tmp_path / "out", 8)
    assert sorted(row.tensor for row in report.unmatched) == sorted(beside)
    changes = {unet + key: after[key] - before[key] for key in before}
    rows = {row.module for row in report.extracted}
    assert rows == {
        key.removesuffix(".weight") for key, change in changes.items() if change.ndim > 1
    }
    assert max(row.error for row in report.extracted) < 1e-4
    updates = reference.deltas(tmp_path / "out")
    for row in rows:
        change = changes[f"{row}.weight"].flatten(1).double()
        update = updates[f"base_model.model.{row}"].reshape(change.shape)
        assert float((change - update).norm() / change.norm()) < 1e-4, row


def test_layers_of_other_shapes_are_listed_while_most_fit(llama, tmp_path):
    tuned = noisy(llama) | {"model.layers.1.mlp.down_proj.weight": torch.randn(16, 20)}
    folders = [save(tmp_path / n, w, LLAMA) for n, w in zip("ab", (llama, tuned), strict=True)]
    report = run(*folders, tmp_path / "out", 4)
    (ours, theirs) = report.unmatched
    assert ours.tensor == theirs.tensor == "model.layers.1.mlp.down_proj.weight"
    assert ours.reason == "has the shape [16, 24], the tuned model's [16, 20]"
    assert theirs.reason == "has the shape [16, 20], the base's [16, 24]"


def test_a_nan_behind_a_view_is_named_by_its_own_tensor(llama, tmp_path):
    after = in_dialect(noisy(llama), "Llama", "transformers", "fused")
    key = "model.layers.1.self_attn.qkv_proj.weight"
    after[key][3, 5] = np.nan
    folders = [save(tmp_path / n, w, LLAMA) for n, w in zip("ab", (llama, after), strict=True)]
    with pytest.raises(NonFiniteError, match=f"{key} holds NaN"):
        run(*folders, tmp_path / "out")
    assert whole.state(folders[1])[key].isnan().any()
