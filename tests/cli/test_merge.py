"""Merge and verify from outside: whole processes, their streams and exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import dense
import pytest
import torch
from bases import BASES
from conftest import FIXTURES
from safetensors.torch import save_file

PLAIN = FIXTURES / "minilm-plain"


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    state = dense.state_of(BASES["minilm-plain"]())
    folder = tmp_path_factory.mktemp("models") / "base"
    return dense.save_base(folder, state, torch.bfloat16)


def test_help_imports_neither_torch_nor_numpy():
    for flags in (["merge", "--help"], ["verify", "--help"]):
        code = (
            "import sys; from lora_tools.cli import cli;"
            f"cli.main({flags!r}, standalone_mode=False);"
            "assert not {'torch', 'numpy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_merge_writes_a_whole_model_and_verify_passes_it(base, tmp_path):
    (base / "README.md").write_text("# Mine\n")
    (base / ".cache").mkdir(exist_ok=True)
    out = tmp_path / "out"
    done = run("merge", base, PLAIN, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "total of 12 tensors" in done.stdout
    assert f"written to {out}" in done.stdout
    assert "left out: .cache (a folder)" in done.stdout
    names = {file.name for file in base.iterdir()} - {".cache"} | {"lora_tools_report.json"}
    assert {file.name for file in out.iterdir()} == names
    readme = (out / "README.md").read_text()
    assert readme.startswith("# Mine")
    assert "lora-tools merge" in readme
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    report = json.loads((out / "lora_tools_report.json").read_text())
    assert report["schema"] == "lora-tools/merge/2"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    proof = run("verify", out, base, PLAIN)
    assert (proof.returncode, proof.stderr) == (0, "")
    assert "passed: " in proof.stdout
    data = json.loads(run("verify", out, base, PLAIN, "--json").stdout)
    assert data["totals"]["outcomes"]["exact"] == 12
    failed = run("verify", out, base, PLAIN, "--weight", 2)
    assert failed.returncode == 1
    assert "looks like scale 2 instead of 4" in failed.stdout
    assert run("verify", out, base, PLAIN, "--weight", 2, "--quiet").stdout == ""


def test_outputs_that_would_harm_an_input_are_refused(base, tmp_path):
    (tmp_path / "taken").mkdir()
    for out, stated in (
        (base, "is the base itself"),
        (base / "merged", "lies inside the base"),
        (tmp_path / "taken", "exists already"),
        (PLAIN / "merged", "lies inside the adapter"),
    ):
        done = run("merge", base, PLAIN, out)
        assert done.returncode == 1
        assert stated in done.stderr
    assert run("merge", base, PLAIN, tmp_path / "taken", "--force", "--quiet").returncode == 0


def test_a_dry_run_writes_nothing(base, tmp_path):
    done = run("merge", base, PLAIN, tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "encoder.layer.[0..5].attention.self.query.weight" in done.stdout
    assert not list(tmp_path.iterdir())
    data = json.loads(run("merge", base, PLAIN, tmp_path / "out", "--dry-run", "--json").stdout)
    assert data["totals"]["shards"] == 2


def test_weights_are_counted(base, tmp_path):
    done = run("merge", base, PLAIN, tmp_path / "out", "--weight", 1, "--weight", 2)
    assert done.returncode == 2
    assert "2 --weight for 1 adapters" in done.stderr


def test_a_wrong_base_is_named_on_both_sides(base, tmp_path):
    done = run("merge", base, FIXTURES / "gpt2-conv1d", tmp_path / "out")
    assert done.returncode == 1
    assert "are unmatched in the base" in done.stderr
    assert "transformer.h.0.attn.c_attn" in done.stderr
    assert "The base has " in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_lossy_merge_is_warned_of_on_stderr(base, tmp_path):
    done = run("merge", base, PLAIN, tmp_path / "out", "--weight", 0.01)
    assert done.returncode == 0
    assert "warning: rounding to BF16 took" in done.stderr


def test_sizes_and_types(base, tmp_path):
    out = tmp_path / "out"
    done = run("merge", base, PLAIN, out, "--dtype", "float16", "--max-shard-size", "10MB")
    assert done.returncode == 0, done.stderr
    tensors = dense.load_model(out)
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    assert len(list(out.glob("*.safetensors"))) > 2


def test_a_base_of_one_file_is_merged_beside_itself(tmp_path):
    state = dense.state_of(BASES["minilm-plain"]())
    alone = tmp_path / "model.safetensors"
    save_file({key: value.clone() for key, value in state.items()}, alone)
    done = run("merge", alone, PLAIN, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    (tmp_path / "config.json").write_text("{}")  # now the folder is the model
    done = run("merge", alone, PLAIN, tmp_path / "again")
    assert done.returncode == 1
    assert "lies inside the folder of the base" in done.stderr
