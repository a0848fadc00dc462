"""The command extract from outside: whole processes, killed ones too."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import real
from safetensors.torch import save_file


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", "extract", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    base = {f"layers.{i}.up.weight": torch.randn(40, 30) for i in range(3)}
    base["norm.weight"] = torch.ones(30)
    tuned = {name: w + 0.1 * torch.randn(w.shape) for name, w in base.items()}
    tuned["layers.1.up.weight"] = base["layers.1.up.weight"]
    for name, weights in (("base", base), ("tuned", tuned)):
        save_file(weights, tmp_path / f"{name}.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from lora_tools.cli import cli;"
        "cli.main(['extract', '--help'], standalone_mode=False);"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_whole_run(pair, tmp_path):
    done = run(*pair, tmp_path / "out", "--rank", 4, "--base-model", "someone/base")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first = done.stdout.splitlines()[2]
    assert first.startswith("layers.[0,2].up")
    assert "unchanged, bit for bit: 1 tensors" in done.stdout
    assert "norm.weight, 120 B" in done.stdout
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/base"
    assert config["target_modules"] == ["layers.0.up", "layers.2.up"]
    assert not (tmp_path / ".out.partial").exists()
    report = json.loads((tmp_path / "out" / "lora_tools_report.json").read_text())
    assert report["schema"] == "lora-tools/extraction/2"
    assert [row["module"] for row in report["modules"]] == ["layers.0.up", "layers.2.up"]
    assert report["totals"]["error"] >= report["totals"]["optimal_error_lower_bound"] > 0
    assert report["unchanged"] == ["layers.1.up"]


def test_json_is_the_report(pair, tmp_path):
    done = run(*pair, tmp_path / "out", "--energy", 0.5, "--json")
    assert json.loads(done.stdout)["policy"] == "energy 0.5"


def test_a_dry_run_writes_nothing(pair, tmp_path):
    done = run(*pair, tmp_path / "out", "--dry-run", "--rank", 4)
    assert done.returncode == 0, done.stderr
    assert "layers.[0..2].up" in done.stdout
    assert "nothing written" in done.stdout
    plan = json.loads(run(*pair, tmp_path / "out", "--dry-run", "--json").stdout)
    assert plan["totals"]["params_after"] == 3 * 30 * 70  # at the largest rank there is
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "give one of --rank"),
        (["--rank", 4, "--energy", 0.5], 2, "only one of"),
        (["--energy", 0.99, "--max-rank", 2], 3, "cannot be kept"),
        (["--rank", 4, "--include", "down"], 2, "no module matches down"),
        (["--rank", 4, "--exclude", "*"], 1, "no tensor that was to be extracted differs"),
        (["--rank", 4, "--device", "cuda:99"], 1, "no such device"),
    ],
)
def test_errors_and_statuses(pair, tmp_path, arguments, status, message):
    done = run(*pair, tmp_path / "out", *arguments)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_out_is_replaced_only_by_force(pair, tmp_path):
    (tmp_path / "out").mkdir()
    assert "exists already" in run(*pair, tmp_path / "out", "--rank", 4).stderr
    assert run(*pair, tmp_path / "out", "--rank", 4, "--force").returncode == 0


def test_killed_at_random_moments_it_goes_on_and_ends_in_the_same_bytes(tmp_path):
    folder = real("chgnet-pair")
    inputs = folder / "base-0.3.0.safetensors", folder / "r2scan.safetensors"
    began = time.monotonic()
    (tmp_path / "whole").mkdir()
    assert run(*inputs, "out", "--rank", 8, cwd=tmp_path / "whole").returncode == 0
    took = time.monotonic() - began
    killed = tmp_path / "killed"
    killed.mkdir()
    command = [sys.executable, "-m", "lora_tools", "extract", *map(str, inputs), "out"]
    dice, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(
            [*command, "--rank", "8"],
            cwd=killed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(dice.uniform(0.2, 0.9) * took)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if (killed / "out").exists():  # the kill came too late: compare, and begin anew
            check_same(tmp_path / "whole" / "out", killed / "out")
            shutil.rmtree(killed / "out")
    assert run(*inputs, "out", "--rank", 8, cwd=killed).returncode == 0
    check_same(tmp_path / "whole" / "out", killed / "out")


def check_same(whole: Path, resumed: Path) -> None:
    for file in whole.iterdir():
        theirs = (resumed / file.name).read_bytes()
        if file.name != "lora_tools_report.json":
            assert file.read_bytes() == theirs
        else:  # the command line is in it
            assert json.loads(file.read_bytes()) == json.loads(theirs)


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[Path, Path]:
    """A language model, and a fine-tune whose updates have ranks 2 and 5."""
    torch.manual_seed(0)
    names = {f"model.layers.0.self_attn.{part}_proj.weight": r for part, r in (("q", 2), ("v", 5))}
    base = {name: torch.randn(40, 40) for name in names}
    tuned = {
        name: weight + 0.1 * torch.randn(40, names[name]) @ torch.randn(names[name], 40)
        for name, weight in base.items()
    }
    for place, weights in (("base", base), ("tuned", tuned)):
        (tmp_path / place).mkdir()
        save_file(weights, tmp_path / place / "model.safetensors")
        (tmp_path / place / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "base", tmp_path / "tuned"


def test_a_format_that_would_round_scales_into_the_factors_is_refused(uneven, tmp_path):
    """MLX has one scale for all: the errors in the report would not be those of the bytes."""
    options = ("--energy", 0.999, "--dtype", "bfloat16", "--to", "mlx")
    done = run(*uneven, tmp_path / "out", *options, "--alpha", 3)
    assert done.returncode == 1
    assert "mlx: has no place for these scales" in done.stderr
    assert "Extract without --to, and convert the result" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(*uneven, tmp_path / "other", *options)  # each scale is 1
    assert done.returncode == 0, done.stderr


def test_a_format_without_names_for_a_model_is_refused(uneven, tmp_path):
    done = run(*uneven, tmp_path / "out", "--rank", 2, "--to", "kohya")
    assert done.returncode == 1
    assert "kohya: has no names for model.layers.0.self_attn.q_proj" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
