"""`--min-rank 0`: a policy may remove modules, and they count into the error and are listed."""

import json

import pytest
import torch
from reference import deltas, tail
from safetensors.torch import save_file

from lora_tools.cli import cli
from lora_tools.errors import BoundError, PolicyError
from lora_tools.rewrite import RewriteOptions


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.fixture
def uneven(tmp_path):
    """An adapter of which some modules add next to nothing, and one adds nothing."""
    folder = tmp_path / "uneven"
    folder.mkdir()
    tensors = {}
    for number, size in enumerate((1.0, 1e-3, 0.5, 0.0)):
        prefix = f"base_model.model.l.{number}.q"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, 20)
        tensors[f"{prefix}.lora_B.weight"] = size * torch.randn(16, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "policy", [("--max-error", 0.1), ("--max-params", "50%"), ("--max-size", "2kB")]
)
def test_modules_are_removed_that_are_worth_less_than_they_cost(policy, uneven, tmp_path, capsys):
    run("shrink", uneven, tmp_path / "out", *policy, "--min-rank", 0, "--json")
    report = json.loads(capsys.readouterr().out)
    before, after = deltas(uneven), deltas(tmp_path / "out")
    gone = {name: delta for name, delta in before.items() if name not in after}
    names = {name.removeprefix("base_model.model.") for name in gone}
    assert names >= ({"l.3.q"} if policy[0] == "--max-size" else {"l.1.q", "l.3.q"})
    rows = {row["module"]: row for row in report["modules"]}
    assert {name for name, row in rows.items() if row["outcome"] == "removed"} == names
    assert all(rows[name]["rank_after"] == 0 for name in names)
    lost = sum(float((before[n] - after.get(n, 0)).square().sum()) for n in before)
    whole = sum(float(delta.square().sum()) for delta in before.values())
    assert report["totals"]["error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    best = sum(
        tail(d, rows[n.removeprefix("base_model.model.")]["rank_after"]) for n, d in before.items()
    )
    assert report["totals"]["optimal_error"] == pytest.approx((best / whole) ** 0.5, rel=1e-4)
    for name, share in report["removed"].items():
        norm = float(before[f"base_model.model.{name}"].norm())
        assert share == pytest.approx(norm / whole**0.5, rel=1e-5)
    assert report["removed"].keys() == names
    if policy[0] == "--max-error":
        assert report["totals"]["error"] <= 0.1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(after)


def test_energy_removes_what_has_none(uneven, tmp_path, capsys):
    """Each module keeps its own share, so only those without any can go."""
    run("shrink", uneven, tmp_path / "out", "--energy", 0.9, "--min-rank", 0)
    assert "removed: l.3.q (0 % of ‖ΔW‖)" in capsys.readouterr().out
    assert len(deltas(tmp_path / "out")) == 3


def test_fewer_parameters_keep_the_same_bound(uneven, tmp_path, capsys):
    params = []
    for least in (0, 1):
        words = ("--max-error", 0.3, "--min-rank", least, "--json")
        run("shrink", uneven, tmp_path / str(least), *words)
        params.append(json.loads(capsys.readouterr().out)["totals"]["params_after"])
    assert params[0] < params[1]


def test_one_rank_for_vllm(uneven, tmp_path, capsys):
    words = ("--max-error", 0.3, "--min-rank", 0, "--for", "vllm", "--json")
    run("shrink", uneven, tmp_path / "out", *words)
    report = json.loads(capsys.readouterr().out)
    assert {row["rank_stored"] for row in report["modules"] if row["rank_after"]} == {8}
    assert "l.3.q" in report["removed"]


def test_nothing_left_is_refused(uneven, tmp_path):
    with pytest.raises(BoundError, match="no module is left"):
        run("shrink", uneven, tmp_path / "out", "--max-error", 1, "--min-rank", 0)
    with pytest.raises(PolicyError, match="at least 0"):
        RewriteOptions(min_rank=-1)
