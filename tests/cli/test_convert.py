"""The command line of conversions from outside: whole processes, their streams and statuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from judges import judge
from safetensors import safe_open
from safetensors.torch import save_file

from lora_tools.formats.features import FEATURES
from lora_tools.formats.registry import FORMATS

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_a_folder_is_written_with_its_report(tmp_path):
    out = tmp_path / "mlx"
    done = run("convert", PLAIN, out, "--to", "mlx")
    assert (done.returncode, done.stderr) == (0, "")
    assert "peft → mlx: 12 modules, 12 kept" in done.stdout
    assert "error 0 % as written" in done.stdout
    report = json.loads((out / "lora_tools_report.json").read_text())
    assert (report["schema"], report["target_format"]) == ("lora-tools/report/3", "mlx")
    assert report["totals"]["bytes_after"] == (out / "adapters.safetensors").stat().st_size
    assert "lora-tools convert" in (out / "README.md").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["mlx"]


def test_a_single_file_is_written_and_read(tmp_path):
    out = tmp_path / "lora.safetensors"
    done = run("convert", PLAIN, out, "--to", "kohya", "--json")
    report = json.loads(done.stdout)
    assert report["totals"]["error"] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]
    with safe_open(out, "np") as file:
        assert sum(key.endswith(".alpha") for key in file.keys()) == 12  # noqa: SIM118
    shown = run("inspect", out)
    assert shown.returncode == 0
    assert "kohya" in shown.stdout
    back = run("convert", out, tmp_path / "back", "--to", "peft", "--quiet")
    assert (back.returncode, back.stdout, back.stderr) == (0, "", "")
    same = run("diff", PLAIN, tmp_path / "back", "--tolerance", "0")
    assert same.returncode == 0, same.stdout


def test_a_shrink_of_a_file_writes_its_own_format(tmp_path):
    run("convert", PLAIN, tmp_path / "lora.safetensors", "--to", "kohya")
    done = run(
        "shrink", tmp_path / "lora.safetensors", tmp_path.parent / f"{tmp_path.name}-s", "--rank", 2
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path.parent / f"{tmp_path.name}-s"
    with safe_open(folder / "lora.safetensors", "np") as file:
        keys = list(file.keys())
        alphas = {float(file.get_tensor(key)) for key in keys if key.endswith(".alpha")}
    assert alphas == {2.0}
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("source", "arguments", "status", "message"),
    [
        ("minilm-plain", ["--to", "latin"], 1, "there is no format latin"),
        ("minilm-plain", ["--to", "kohya", "--drop", "dragons"], 2, "there is no feature dragons"),
        ("minilm-plain", ["--to", "kohya", "--format", "mlx"], 1, "no scale"),
        ("minilm-plain", ["--to", "diffusers"], 1, "not in diffusers' names"),
        (
            "minilm-embedding",
            ["--to", "kohya"],
            1,
            "kohya does not support\n  embedding: embeddings",
        ),
        ("minilm-tokens", ["--to", "mlx"], 1, "trainable tokens"),
        ("minilm-plain", [], 2, "Missing option '--to'"),
    ],
)
def test_refusals_write_nothing_and_say_why(source, arguments, status, message, tmp_path):
    done = run("convert", FIXTURES / source, tmp_path / "out", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_file_for_a_format_with_a_configuration_is_refused(tmp_path):
    done = run("convert", PLAIN, tmp_path / "x.safetensors", "--to", "mlx")
    assert done.returncode == 2
    assert "OUT is a folder" in done.stderr


def test_a_file_has_the_ending_of_its_container(tmp_path):
    for ending, target, right in (
        ("safetensors", "gguf", r".gguf"),
        ("gguf", "kohya", ".safetensors"),
    ):
        done = run("convert", PLAIN, tmp_path / f"x.{ending}", "--to", target)
        assert done.returncode == 2
        assert f"{target} is written to files that end in {right}" in done.stderr
    assert not list(tmp_path.iterdir())


LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def llama(tmp_path):
    """A base with its configuration, and an adapter of its queries and keys."""
    torch.manual_seed(0)
    paths = {"q_proj": 32, "k_proj": 16}
    weights, factors = {}, {}
    for path, out in paths.items():
        name = f"model.layers.0.self_attn.{path}"
        weights[f"{name}.weight"] = torch.randn(out, 32)
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, 32)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 4)
    for folder, tensors, file, config in (
        ("base", weights, "model", LLAMA),
        ("peft", factors, "adapter_model", {"peft_type": "LORA", "r": 4, "lora_alpha": 8}),
    ):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / f"{file}.safetensors")
        name = "config.json" if folder == "base" else "adapter_config.json"
        (tmp_path / folder / name).write_text(json.dumps(config | {"target_modules": [*paths]}))
    return tmp_path


def test_gguf_and_back_with_the_base_that_knows_the_heads(llama):
    judge("gguf")
    base, peft, file = llama / "base", llama / "peft", llama / "lora.gguf"
    refused = run("convert", peft, file, "--to", "gguf")
    assert refused.returncode == 1
    assert "hint: Give the base model, whose config.json says them: --base MODEL." in refused.stderr
    done = run("convert", peft, file, "--to", "gguf", "--base", base, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["totals"]["error"] == 0
    assert report["totals"]["bytes_after"] == file.stat().st_size
    shown = run("inspect", file)
    assert shown.returncode == 0
    assert "gguf adapter" in shown.stdout
    assert "the interleaved RoPE layout" in shown.stdout
    assert "the interleaved RoPE layout" not in run("inspect", file, "--base", base).stdout
    for command in (
        ["diff", peft, file],
        ["convert", file, llama / "back", "--to", "peft"],
        ["convert", file, llama / "back.safetensors", "--to", "kohya"],
    ):
        done = run(*command)
        assert done.returncode == (2 if command[0] == "diff" else 1)
        assert "does not say how many heads share them" in done.stderr
        assert "--base MODEL" in done.stderr
        done = run(*command, "--base", base)
        assert done.returncode == 0, done.stderr
    assert run("diff", peft, llama / "back", "--tolerance", "0").returncode == 0
    assert run("merge", base, file, llama / "merged").returncode == 0
    assert run("verify", llama / "merged", base, peft).returncode == 0
    assert run("verify", llama / "merged", base, file).returncode == 0
    folder = llama / "folder"
    assert run("convert", peft, folder, "--to", "gguf", "--base", base).returncode == 0
    assert {path.name for path in folder.iterdir()} == {
        "adapter_model.gguf",
        "lora_tools_report.json",
    }
    small = run("shrink", folder, llama / "small", "--rank", "2")
    assert small.returncode == 0, small.stderr
    assert (llama / "small" / "adapter_model.gguf").is_file()
    assert run("inspect", llama / "small").returncode == 0


def test_what_exists_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "x.safetensors"
    out.write_text("precious")
    refused = run("convert", PLAIN, out, "--to", "kohya")
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert out.read_text() == "precious"
    refused = run("convert", PLAIN, out, "--to", "kohya", "--force")
    assert refused.returncode == 1
    assert "does not look like" in refused.stderr
    assert out.read_text() == "precious"
    assert run("convert", PLAIN, out, "--to", "kohya", "--force-any").returncode == 0
    assert run("convert", PLAIN, out, "--to", "kohya", "--force").returncode == 0
    itself = run("convert", out, out, "--to", "comfyui", "--force")
    assert itself.returncode == 1
    assert "is the source itself" in itself.stderr


def test_a_dry_run_writes_nothing(tmp_path):
    done = run("convert", PLAIN, tmp_path / "out", "--to", "kohya", "--dry-run")
    assert done.returncode == 0
    assert "nothing written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_formats_lists_every_format_and_kind():
    text = run("formats").stdout
    assert all(f"\n{format.name} " in text for format in FORMATS)
    data = json.loads(run("formats", "--json").stdout)
    assert [row["format"] for row in data["formats"]] == [format.name for format in FORMATS]
    assert data["features"] == FEATURES
    assert any("numbered pairs" in reason for reason in data["refused"])


def test_help_imports_no_torch_and_no_numpy():
    for command in ("convert", "formats"):
        code = (
            "import sys; from lora_tools.cli import cli;"
            f"cli.main([{command!r}, '--help'], standalone_mode=False);"
            "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_ranks_are_lowered_on_the_way(tmp_path):
    out = tmp_path / "small"
    done = run("convert", PLAIN, out, "--to", "mlx", "--rank", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["policy"] == "rank 2"
    assert {row["rank_stored"] for row in report["modules"]} == {2}
    best, error = (report["totals"][field] for field in ("optimal_error", "error"))
    assert 0 < best < 1
    assert error == pytest.approx(best, rel=1e-6)
    compared = run("diff", PLAIN, out, "--json")
    difference = json.loads(compared.stdout)["totals"]["relative_difference"]
    assert difference == pytest.approx(report["totals"]["error"], rel=1e-6)
    assert "peft → mlx, rank 2: 12 modules, 12 shrunk" in (out / "README.md").read_text()
    quick = run("convert", PLAIN, tmp_path / "x", "--to", "kohya", "--energy", ".5", "--dry-run")
    assert "best possible at these ranks" in quick.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "2", "--energy", "0.5"], "give only one of --rank and --energy"),
        (["--max-rank", "2"], "go with one of --rank"),
        (["--energy", "0.5", "--per-module"], "--per-module goes with --max-error"),
    ],
)
def test_options_of_ranks_go_with_a_policy(arguments, message, tmp_path):
    done = run("convert", PLAIN, tmp_path / "out", "--to", "mlx", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_by_itself_is_shrunk_beside_itself(tmp_path):
    run("convert", PLAIN, tmp_path / "lora.safetensors", "--to", "kohya")
    done = run("shrink", "lora.safetensors", "small", "--rank", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small").is_dir()
    shutil.copytree(PLAIN, tmp_path / "peft")
    done = run("shrink", "adapter_model.safetensors", "small", "--rank", 2, cwd=tmp_path / "peft")
    assert done.returncode == 1
    assert "small: lies inside the folder of the source, ." in done.stderr
    assert not (tmp_path / "peft" / "small").exists()
