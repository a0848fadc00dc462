"""What an adapter's files leave out, said on the command line: alpha, and its base's heads."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file, save_file

SHAPES = {"q_proj": (16, 8), "k_proj": (8, 8), "v_proj": (8, 8)}
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {
        f"model.layers.0.self_attn.{name}.weight": torch.randn(shape)
        for name, shape in SHAPES.items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def silent(tmp_path):
    """An adapter of torchtune's without its configuration."""
    folder = tmp_path / "silent"
    folder.mkdir()
    found = {}
    for name, (out, inp) in SHAPES.items():
        found[f"layers.0.attn.{name}.lora_a.weight"] = torch.randn(3, inp)
        found[f"layers.0.attn.{name}.lora_b.weight"] = torch.randn(out, 3)
    torch.save(found, folder / "adapter_model.pt")
    return folder


def test_convert_is_told(silent, base, tmp_path):
    done = run("convert", silent, tmp_path / "peft", "--to", "peft")
    assert done.returncode == 1
    assert "alpha is unknown" in done.stderr
    assert "--alpha N" in done.stderr
    done = run("convert", silent, tmp_path / "peft", "--to", "peft", "--alpha", 6)
    assert done.returncode == 1
    assert "--base MODEL" in done.stderr
    told = ("--alpha", 6, "--base", base)
    done = run("convert", silent, tmp_path / "peft", "--to", "peft", *told)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    weights = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    before = torch.load(silent / "adapter_model.pt")["layers.0.attn.q_proj.lora_b.weight"]
    after = weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    # Heads of four rows: the second and the third of each change places.
    assert torch.equal(after.reshape(4, 4, 3), before.reshape(4, 4, 3)[:, [0, 2, 1, 3]])


def test_the_others_are_told_alpha(silent, base, tmp_path):
    shown = run("inspect", silent, "--alpha", 6, "--json")
    assert {module["scale"] for module in json.loads(shown.stdout)["modules"]} == {2.0}
    shrunk = run("shrink", silent, tmp_path / "small", "--rank", 2, "--alpha", 6)
    assert shrunk.returncode == 0, shrunk.stderr
    assert run("diff", silent, silent, "--alpha", 6).returncode == 0
    run("convert", silent, tmp_path / "peft", "--to", "peft", "--alpha", 6, "--base", base)
    merged = run("merge", base, silent, tmp_path / "merged", "--alpha", 6)
    assert merged.returncode == 0, merged.stderr
    run("merge", base, tmp_path / "peft", tmp_path / "same")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "same"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    told = run("verify", tmp_path / "merged", base, silent, "--alpha", 6)
    assert told.returncode == 0, told.stdout
    assert run("verify", tmp_path / "merged", base, silent, "--alpha", 7).returncode == 1


def test_an_alpha_that_the_files_say_is_passed_over_with_a_note(tmp_path):
    plain, told = FIXTURES / "minilm-plain", ("--alpha", 6)
    shown, silent = (
        json.loads(run("inspect", plain, "--json", *more).stdout) for more in (told, ())
    )
    assert "Its files say alpha: --alpha is ignored." in shown["notes"]
    assert shown["modules"] == silent["modules"]
    done = run("convert", plain, tmp_path / "x", "--to", "mlx", *told)
    assert "ignored" in done.stdout


@pytest.mark.parametrize("fixture", ["minilm-dora", "minilm-lorabias", "minilm-embedding"])
def test_peft_s_tensors_without_their_configuration_are_told(fixture, tmp_path):
    """Ranks, DoRA and biases are the tensors' own to say; what is written loads as it did."""
    source = FIXTURES / fixture
    stated = json.loads((source / "adapter_config.json").read_text())
    weights = load_file(source / "adapter_model.safetensors")
    factors = {key: weight for key, weight in weights.items() if "lora_" in key}
    (tmp_path / "bare").mkdir()
    save_file(factors, tmp_path / "bare" / "adapter_model.safetensors")
    done = run("convert", tmp_path / "bare", tmp_path / "out", "--to", "peft")
    assert done.returncode == 1
    assert "alpha is unknown: there is no adapter_config.json" in done.stderr
    assert "--alpha N" in done.stderr
    told = ("--to", "peft", "--alpha", stated["lora_alpha"])
    done = run("convert", tmp_path / "bare", tmp_path / "out", *told)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    for field in ("r", "lora_alpha", "use_dora", "lora_bias"):
        assert config[field] == stated.get(field, False), field
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == factors.keys()
    assert all(torch.equal(written[key], factors[key]) for key in factors)
