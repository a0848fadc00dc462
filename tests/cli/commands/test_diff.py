"""diff as a process: what it prints, and its exit statuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import lora_tools.verbs.diff
from lora_tools.cli import _run
from lora_tools.cli.commands.diff import command

FIXTURES = Path(__file__).parents[3] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lora_tools", "diff", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, **options)


def copy(out: Path, **fields: object) -> Path:
    shutil.copytree(PLAIN, out)
    file = out / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return out


def test_the_same_exits_0():
    done = run("minilm-plain", "minilm-plain", cwd=FIXTURES)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == SAME


SAME = """\
A: minilm-plain (peft)
B: minilm-plain (peft)

module                                     shape    rank    scale    A − B    cosine    columns    rows    outcome
-----------------------------------------  -------  ------  -------  -------  --------  ---------  ------  ---------
encoder.layer.[0..5].attention.self.query  384×384  16      2        0 %      1.0000    0°         0°      identical
encoder.layer.[0..5].attention.self.value  384×384  16      2        0 %      1.0000    0°         0°      identical
total of 12 modules                                                  0 %      1.0000    0°         0°

same update, same factors
"""  # noqa: E501


def test_other_exits_1_and_shows_where(tmp_path):
    done = run("minilm-patterns", "minilm-plain", cwd=FIXTURES)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == OTHER


OTHER = """\
A: minilm-patterns (peft)
B: minilm-plain (peft)

module                                       shape    rank       scale           A − B     cosine    columns     rows        outcome
-------------------------------------------  -------  ---------  --------------  --------  --------  ----------  ----------  ---------
encoder.layer.[0..5].attention.self.query    384×384  8–16 → 16  1.125–1.25 → 2  226.9 %   0.1568    36.9–89.9°  16.9–86.4°  different
encoder.layer.[0..5].attention.self.value    384×384  5 → 16     1.4 → 2         253.44 %  0.1121    45.2–79°    21.5–84.8°  different
encoder.layer.[0..5].attention.output.dense  384×384  2          1.5             100 %     –         –           –           only in A
encoder.layer.[0..5].attention.self.key      384×384  6–8        1.5–2           100 %     –         –           –           only in A
total of 24 modules                                                              178.25 %  0.0930    36.9–89.9°  16.9–86.4°

different updates: difference 178.25 %, cosine 0.0930
12 modules only in A
"""  # noqa: E501


def test_json_and_quiet_have_the_same_status(tmp_path):
    other = copy(tmp_path / "b", lora_alpha=16)
    done = run(PLAIN, other, "--json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["schema"], data["same"]) == (1, "lora-tools/diff/2", False)
    assert data["summary"] == ["B is 0.5 × A"]
    assert data["totals"]["relative_difference"] == pytest.approx(0.5)
    quiet = run(PLAIN, other, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


def test_a_tolerance_makes_them_the_same(tmp_path):
    other = copy(tmp_path / "b", lora_alpha=31.9)
    assert run(PLAIN, other, "--quiet").returncode == 1
    assert run(PLAIN, other, "--quiet", "--tolerance", "0.01").returncode == 0
    assert run(PLAIN, PLAIN, "--quiet", "--tolerance", "0").returncode == 0


def test_full_lists_every_module():
    done = run(PLAIN, PLAIN, "--full", "--jobs", 1)
    assert done.stdout.count("attention.self.query") == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        ([PLAIN, "--include", "nothing"], "matches nothing"),
        ([PLAIN, "--tolerance", "-1"], "--tolerance"),
        ([], "Missing argument"),
        ([PLAIN, "--device", "cuda:77"], "no such device"),
    ],
)
def test_trouble_exits_2_and_never_1(arguments, message):
    done = run(PLAIN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_nan_exits_2_and_names_the_tensor(tmp_path):
    other = copy(tmp_path / "b")
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    key = sorted(tensors)[0]
    tensors[key][0, 0] = float("nan")
    save_file(tensors, file)
    done = run(PLAIN, other)
    assert done.returncode == 2
    assert f"{file}: {key}: NaN or Inf" in done.stderr
    assert "hint:" in done.stderr


def test_a_defect_of_ours_is_not_a_difference(monkeypatch, capsys):
    def fails(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(lora_tools.verbs.diff, "diff", fails)
    monkeypatch.setattr(sys, "argv", ["lora-tools", "diff", str(PLAIN), str(PLAIN)])
    assert _run() == 2
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err


def test_the_tolerance_is_that_of_the_library():
    (option,) = [o for o in command.params if o.name == "tolerance"]
    assert option.default == lora_tools.verbs.diff.TOLERANCE


def test_help_imports_neither_numpy_nor_torch():
    code = (
        "import sys; from lora_tools.cli import cli;"
        "cli.main(['diff', '--help'], standalone_mode=False);"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_comparing_imports_no_torch_where_numpy_has_the_type():
    code = (
        "import sys; from lora_tools.cli import cli;"
        f"cli.main(['diff', {str(PLAIN)!r}, {str(PLAIN)!r}, '--quiet'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
