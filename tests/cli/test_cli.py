"""The command line from outside: whole processes, their streams and exit statuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_tools.cli import COMMANDS

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_help_and_version_import_no_torch():
    for flags in (["--help"], ["--version"], ["shrink", "--help"], ["inspect", "--help"]):
        code = (
            "import sys; from lora_tools.cli import cli;"
            f"cli.main({flags!r}, standalone_mode=False);"
            "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_help_lists_every_command():
    text = run("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_shrink_writes_a_complete_adapter(tmp_path):
    out = tmp_path / "small"
    done = run("shrink", PLAIN, out, "--rank", 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "total of 12 modules" in done.stdout
    assert f"written to {out}" in done.stdout
    names = {file.name for file in PLAIN.iterdir()} | {"lora_tools_report.json"}
    assert {file.name for file in out.iterdir()} == names
    readme = (out / "README.md").read_text()
    assert readme.startswith((PLAIN / "README.md").read_text().rstrip())
    assert f"lora-tools shrink {PLAIN} {out} --rank 4" in readme
    report = json.loads((out / "lora_tools_report.json").read_text())
    assert report["totals"]["bytes_after"] == (out / "adapter_model.safetensors").stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["small"]


def test_shrinking_again_replaces_our_section_of_the_readme(tmp_path):
    run("shrink", PLAIN, tmp_path / "one", "--rank", 8)
    run("shrink", tmp_path / "one", tmp_path / "two", "--rank", 2)
    text = (tmp_path / "two" / "README.md").read_text()
    assert text.count("lora-tools: begin") == 1
    assert "--rank 2" in text
    assert "--rank 8" not in text


def test_json_goes_to_stdout_and_nothing_else(tmp_path):
    done = run("shrink", PLAIN, tmp_path / "out", "--energy", 0.9, "--json")
    assert json.loads(done.stdout)["schema"] == "lora-tools/report/3"
    assert done.stderr == ""


def test_quiet_says_nothing(tmp_path):
    report = tmp_path / "report.json"
    done = run("shrink", PLAIN, tmp_path / "out", "--rank", 2, "--quiet", "--report", report)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(report.read_text())["totals"]["error"] > 0


def test_a_dry_run_writes_nothing_and_reports_the_same(tmp_path):
    dry = run("shrink", PLAIN, tmp_path / "out", "--max-error", 0.3, "--dry-run", "--json")
    assert not list(tmp_path.iterdir())
    wet = run("shrink", PLAIN, tmp_path / "out", "--max-error", 0.3, "--json")
    a, b = json.loads(dry.stdout), json.loads(wet.stdout)
    for data in (a, b):
        data["arguments"] = data["totals"]["seconds"] = None
    assert a == b


def test_without_a_policy_a_dry_run_shows_ranks_to_choose_from(tmp_path):
    done = run("shrink", "minilm-plain", tmp_path / "out", "--dry-run", cwd=FIXTURES)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[2:]] == ["1", "2", "4", "8", "16"]
    assert lines[-1][-2:] == ["0", "%"]
    assert "--rank N" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--rank", 2, "--energy", 0.5], 2, "only one of --rank and --energy"),
        ([], 2, "give one of"),
        (["--rank", 2, "--per-module"], 2, "--per-module goes with --max-error"),
        (["--max-size", "20 parsecs"], 2, "is not a size"),
        (["--rank", 2, "--device", "tpu"], 2, "is not cpu, cuda"),
        (["--rank", 2, "--module-rank", "query"], 2, "is not PATTERN=N"),
        (["--max-size", "1kB"], 3, "too few"),
        (["--max-params", "1%"], 3, "too few"),
        (["--max-error", 0.01, "--max-rank", 2], 3, "max-error 0.01 cannot be kept"),
        (["--energy", 0.99, "--max-rank", 2], 3, "energy 0.99 cannot be kept in encoder"),
        (["--energy", 1.5], 2, "energy must be above 0"),
        (["--max-params", "nan%"], 2, "is no number above 0 or percentage to 100"),
        (["--max-params", "-5%"], 2, "is no number above 0 or percentage to 100"),
        (["--rank", 2, "--include", "nothing"], 2, "no module matches nothing"),
        (["--rank", 2, "--for", "vllm", "--scale", "keep"], 2, "folded"),
        (["--rank", 4, "--min-rank", 8, "--for", "vllm"], 3, "rank 4 cannot be kept"),
        (["--dry-run", "--report", "x.json"], 2, "--report goes with a policy"),
        (["--rank", 2, "--report", "nowhere/x.json"], 1, "there is no folder nowhere"),
    ],
)
def test_refusals_write_nothing_and_say_why(arguments, status, message, tmp_path):
    done = run("shrink", PLAIN, tmp_path / "out", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    refused = run("shrink", PLAIN, out, "--rank", 2)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    forced = run("shrink", PLAIN, out, "--rank", 2, "--force")
    assert forced.returncode == 1
    assert "does not look like an output of lora-tools" in forced.stderr
    assert "--force-any" in forced.stderr
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    assert run("shrink", PLAIN, out, "--rank", 2, "--force-any").returncode == 0
    assert (out / "adapter_model.safetensors").exists()
    assert not (out / "mine.txt").exists()
    again = run("shrink", PLAIN, out, "--rank", 4, "--force", "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("inside", ["", "deeper/out", "adapter_model.safetensors"])
def test_an_output_inside_or_equal_to_the_source_is_refused(inside, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(PLAIN, source)
    before = {file: file.read_bytes() for file in source.rglob("*")}
    done = run("shrink", source, source / inside, "--rank", 2, "--force")
    assert done.returncode == 1
    assert "source" in done.stderr
    assert {file: file.read_bytes() for file in source.rglob("*")} == before


def test_a_single_file_is_a_source_too(tmp_path):
    done = run("shrink", PLAIN / "adapter_model.safetensors", tmp_path / "out", "--rank", 2)
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "lora_tools_report.json",
    }


def test_debug_shows_the_traceback(tmp_path):
    done = run("--debug", "inspect", tmp_path / "nothing")
    assert done.returncode == 1
    assert "CheckpointError" in done.stderr
    assert "Traceback" in done.stderr


def test_errors_name_the_file_and_the_remedy(tmp_path):
    broken = tmp_path / "adapter_model.safetensors"
    broken.write_bytes((PLAIN / "adapter_model.safetensors").read_bytes()[:1000])
    shutil.copy(PLAIN / "adapter_config.json", tmp_path)
    done = run("inspect", tmp_path)
    assert done.returncode == 1
    assert str(broken) in done.stderr
    assert "truncated" in done.stderr
    assert "hint: Download" in done.stderr


def test_no_colour_where_nobody_asked_for_it(tmp_path):
    done = run("inspect", tmp_path / "nothing", env=os.environ | {"NO_COLOR": "1"})
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("moment", [0.02, 0.3, 0.6])
def test_a_kill_while_writing_leaves_no_output(moment, tmp_path):
    # A pipe in place of a tensor file's bytes would be artificial: a large file is slow enough.
    import torch
    from safetensors.torch import save_file

    source, out = tmp_path / "source", tmp_path / "work" / "out"
    source.mkdir()
    out.parent.mkdir()
    names = [f"base_model.model.layers.{i}.query" for i in range(60)]
    tensors = {f"{name}.lora_A.weight": torch.randn(64, 2048) for name in names}
    tensors |= {f"{name}.lora_B.weight": torch.randn(2048, 64) for name in names}
    save_file(tensors, source / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": ["query"]}
    (source / "adapter_config.json").write_text(json.dumps(config))
    arguments = [sys.executable, "-m", "lora_tools", "shrink", source, out, "--rank", "63"]
    process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.parent.iterdir()):
        time.sleep(0.005)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == -signal.SIGKILL:
        assert not out.exists()
    else:  # it was faster
        assert (out / "lora_tools_report.json").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path):
    import torch

    device = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    done = run("shrink", PLAIN, tmp_path / "out", "--rank", 2, "--device", device)
    assert done.returncode == 1
    assert f"{device}: no such device here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "meant"),
    [
        (["shrnk"], 2, "No such command 'shrnk'. Did you mean 'shrink'?"),
        (["inspect", "runs/checkpiont-1"], 1, "Did you mean 'checkpoint-1'?"),
        (["inspect", "runs/checkpiont-1"], 1, "On the Hub it would be hf://runs/checkpiont-1."),
        (["inspect", "runs/checkpoint-1", "--for", "pefft"], 2, "Did you mean 'peft'?"),
        (["convert", "runs/checkpoint-1", "out", "--to", "kohia"], 1, "Did you mean 'kohya'?"),
        (["inspect", "./runs/checkpiont-1"], 1, "Did you mean 'checkpoint-1'?"),
        (["diff", "runs/checkpiont-1", "runs/checkpoint-1"], 2, "Did you mean 'checkpoint-1'?"),
    ],
)
def test_a_slip_is_answered_with_what_may_be_meant_and_no_request(
    arguments, status, meant, tmp_path
):
    shutil.copytree(PLAIN, tmp_path / "runs" / "checkpoint-1")
    nobody = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    done = run(*arguments, cwd=tmp_path, env=nobody)
    assert done.returncode == status
    assert meant in done.stderr
    assert "127.0.0.1" not in done.stderr


def test_what_is_like_nothing_here_may_be_on_the_hub(tmp_path):
    (tmp_path / "runs" / "checkpoint-1").mkdir(parents=True)
    nobody = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    for arguments, status in ((["inspect", "runs/cat"], 1), (["diff", "runs/cat", "runs/cat"], 2)):
        done = run(*arguments, cwd=tmp_path, env=nobody)
        assert done.returncode == status
        assert "hf://runs/cat: the Hub cannot be reached" in done.stderr
