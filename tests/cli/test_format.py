"""--format: what an adapter is read as, by every command that reads one."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

PATH = "transformer_blocks.0.attn.to_q"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def adapter(tmp_path):
    """Peft's adapter of a UNet, which diffusers reads as well: at a scale of 1, not of 3."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    stem = f"base_model.model.{PATH}"
    tensors = {f"{stem}.lora_A.weight": torch.eye(2, 6), f"{stem}.lora_B.weight": torch.eye(5, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["to_q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(tmp_path):
    """A model of the one layer, under both of the names that it is called."""
    file = tmp_path / "base" / "model.safetensors"
    file.parent.mkdir()
    names = (PATH, f"transformer.{PATH}")
    save_file({f"{name}.weight": torch.zeros(5, 6) for name in names}, file)
    return file


@pytest.mark.parametrize(("options", "scale"), [([], 3.0), (["--format", "diffusers"], 1.0)])
def test_inspect_and_shrink_read_what_they_are_told(options, scale, adapter, tmp_path):
    shown = json.loads(run("inspect", adapter, "--json", "--spectrum", *options).stdout)
    assert [module["scale"] for module in shown["modules"]] == [scale]
    done = run("shrink", adapter, tmp_path / "out", "--rank", 1, "--json", *options)
    (row,) = json.loads(done.stdout)["modules"]
    assert row["norm"] == pytest.approx(scale * 2**0.5)


def test_a_diff_reads_each_as_it_is_told(adapter):
    def status(*formats):
        options = [word for name in formats for word in ("--format", name)]
        return run("diff", adapter, adapter, "--quiet", *options).returncode

    assert [status(), status("peft"), status("auto", "peft")] == [0, 0, 0]
    assert status("peft", "diffusers") == 1
    assert status("peft", "peft", "peft") == 2


@pytest.mark.parametrize(
    ("formats", "sum"), [([], 6.0), (["diffusers"], 2.0), (["auto", "diffusers"], 4.0)]
)
def test_merge_and_verify_read_each_as_they_are_told(formats, sum, adapter, base, tmp_path):
    options = [word for name in formats for word in ("--format", name)]
    out = tmp_path / "merged"
    done = run("merge", base, adapter, adapter, out, "--allow-missing", *options)
    assert done.returncode == 0, done.stderr
    tensors = load_file(next(out.glob("*.safetensors")))
    assert float(torch.stack(list(tensors.values())).sum()) == pytest.approx(2 * sum)
    proof = run("verify", out, base, adapter, adapter, "--allow-missing", *options)
    assert proof.returncode == 0, proof.stdout
    if formats:
        assert run("verify", out, base, adapter, adapter).returncode != 0


@pytest.mark.parametrize("command", ["inspect", "shrink", "diff", "merge", "verify"])
def test_a_format_that_is_none_is_refused(command, adapter, base, tmp_path):
    arguments = {
        "inspect": [adapter],
        "shrink": [adapter, tmp_path / "out", "--rank", "1"],
        "diff": [adapter, adapter],
        "merge": [base, adapter, tmp_path / "out"],
        "verify": [base, base, adapter],
    }[command]
    done = run(command, *arguments, "--format", "latin")
    assert done.returncode in (1, 2)
    assert "there is no format latin" in done.stderr
    assert done.stdout == ""


def test_what_is_no_such_format_is_listed_by_its_tensors(adapter):
    shown = run("inspect", adapter, "--format", "mlx")
    assert shown.returncode == 1
    assert "not understood" in shown.stderr
