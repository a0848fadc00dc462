"""inspect from outside: whole screens, exit statuses, and files that are none."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import screens
import torch
from conftest import FIXTURES, MADE, real
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

PLAIN = FIXTURES / "minilm-plain"
FILE = "adapter_model.safetensors"

REAL_SCREENS = (
    "peft-gptneo125m-movies",
    "peft-opencalm1b-r1-fusedqkv",
    "diffusers-sd15-catundchat/pytorch_lora_weights.safetensors",
    "mlx-qwen05b/adapters.safetensors",
    "sam-lora/lora_rank4.safetensors",
    "lora-diffusion-cloneofsimo/lora_disney.safetensors",
    "lora-diffusion-cloneofsimo/lora_illust.pt",
    "chgnet-pair/r2scan.safetensors",
)


def run(*arguments: object, cwd: Path = FIXTURES) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_tools", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def screen(done: subprocess.CompletedProcess[str]) -> str:
    """Return all that a person would see."""
    return f"{done.stdout}[stderr]\n{done.stderr}[exit {done.returncode}]\n"


@pytest.mark.parametrize("name", MADE)
def test_the_screen_of_a_fixture(name):
    done = run(name)
    assert (done.returncode, done.stderr) == (0, "")
    screens.check(f"inspect-{name}", screen(done))


@pytest.mark.parametrize("name", MADE)
def test_the_spectra_of_a_fixture(name):
    done = run(name, "--spectrum")
    assert (done.returncode, done.stderr) == (0, "")
    screens.check(f"inspect-spectrum-{name}", screen(done))


@pytest.mark.parametrize("name", REAL_SCREENS)
def test_the_screen_of_a_real_file(name):
    folder, _, file = name.partition("/")
    at = real(folder)
    done = run(Path(folder) / file, cwd=at.parent)
    screens.check(f"inspect-real-{name.replace('/', '-')}", screen(done))


def test_the_spectra_of_a_real_adapter():
    name = "peft-gptneo125m-movies"
    done = run(name, "--spectrum", cwd=real(name).parent)
    screens.check(f"inspect-spectrum-{name}", screen(done))


def test_a_line_for_each_module():
    done = run("minilm-patterns", "--full", "--spectrum")
    names = [
        module["module"]
        for module in json.loads(run("minilm-patterns", "--json").stdout)["modules"]
    ]
    lines = done.stdout.splitlines()
    for name in names:
        assert sum(line.startswith(f"{name} ") for line in lines) == 2


def test_json_is_what_the_schema_says():
    plain = json.loads(run("minilm-patterns", "--json").stdout)
    assert plain["schema"] == "lora-tools/inspect/2"
    assert plain["ranks"] is None
    spectral = json.loads(run("minilm-patterns", "--json", "--spectrum").stdout)
    assert spectral.keys() == plain.keys()
    assert spectral["ranks"]


def test_a_model_is_a_table_of_its_tensors(tmp_path):
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(tmp_path / "model", max_shard_size="5kB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    assert index.is_file()
    folder, file = run("model", cwd=tmp_path), run(index.relative_to(tmp_path), cwd=tmp_path)
    assert folder.returncode == file.returncode == 0
    assert folder.stderr == file.stderr == ""
    assert folder.stdout.partition("\n")[2] == file.stdout.partition("\n")[2]
    screens.check("inspect-model", screen(folder))
    document = json.loads(run("model", "--json", cwd=tmp_path).stdout)
    assert document["schema"] == "lora-tools/tensors/2"
    assert document["architecture"] == "BertModel"
    state = BertModel(config).state_dict()
    assert document["totals"]["tensors"] == len(state)
    assert document["totals"]["params"] == sum(tensor.numel() for tensor in state.values())
    assert sum(group["count"] for group in document["groups"]) == len(state)


def test_a_base_is_compared(tmp_path):
    from bases import BASES

    model = BASES["minilm-plain"]()
    model.save_pretrained(tmp_path / "base")
    shutil.copytree(PLAIN, tmp_path / "adapter")
    done = run("adapter", "--base", "base", cwd=tmp_path)
    screens.check("inspect-base", screen(done))
    done = run("adapter", "--base", "nothing", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing: no such file or folder" in done.stderr


def test_contradictions_are_shown_beside_what_is_sound(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(PLAIN, folder)
    tensors = load_file(folder / FILE)
    query = "base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight"
    del tensors[query.format(0, "A")]
    tensors[query.format(1, "B")] = torch.ones(384, 3)
    tensors["base_model.model.encoder.lora_Q"] = torch.ones(2)
    tensors["base_model.model.encoder.layer.0.output.dense.lora_A.weight"] = torch.ones(16, 1536)
    tensors["base_model.model.encoder.layer.0.output.dense.lora_B.weight"] = torch.ones(384, 16)
    save_file(tensors, folder / FILE)
    done = run("adapter", cwd=tmp_path)
    assert done.returncode == 1
    screens.check("inspect-contradictions", screen(done))


def spoiled(folder: Path, kind: str) -> str:
    """Make one bad input; return what is to be inspected."""
    weights, config = folder / FILE, folder / "adapter_config.json"
    shutil.copytree(PLAIN, folder, dirs_exist_ok=True)
    whole = weights.read_bytes()
    match kind:
        case "empty":
            weights.write_bytes(b"")
        case "truncated":
            weights.write_bytes(whole[: len(whole) // 2])
        case "an LFS pointer":
            weights.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
            )
        case "wrong JSON in the configuration":
            config.write_text('{"r": 8,,}')
        case "wrong JSON in the header":
            weights.write_bytes((20).to_bytes(8, "little") + b"{" * 20)
        case "a header of 100 MB":
            length = 100_000_001
            with weights.open("wb") as file:
                file.write(length.to_bytes(8, "little") + b"{")
                file.truncate(8 + length)
        case "a configuration that is missing":
            config.unlink()
        case "a folder with two adapters":
            weights.rename(folder / "one.safetensors")
            shutil.copy(folder / "one.safetensors", folder / "two.safetensors")
        case "not an adapter at all":
            return str(Path("adapter") / "README.md")
        case "an empty folder":
            for file in folder.iterdir():
                file.unlink()
        case "nothing":
            return "nothing"
    return "adapter"


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "truncated",
        "an LFS pointer",
        "wrong JSON in the configuration",
        "wrong JSON in the header",
        "a header of 100 MB",
        "a configuration that is missing",
        "a folder with two adapters",
        "not an adapter at all",
        "an empty folder",
        "nothing",
    ],
)
@pytest.mark.parametrize("option", ["plain", "--spectrum"])
def test_a_bad_file_is_named_with_its_remedy(kind, option, tmp_path):
    source = spoiled(tmp_path / "adapter", kind)
    done = run(source, *([option] if option != "plain" else []), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    screens.check(f"inspect-bad-{kind.replace(' ', '-')}", screen(done))


def test_nan_is_found_by_the_spectra(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(PLAIN, folder)
    tensors = load_file(folder / FILE)
    tensors["base_model.model.encoder.layer.1.attention.self.query.lora_B.weight"][3, 2] = np.nan
    save_file(tensors, folder / FILE)
    assert run("adapter", cwd=tmp_path).returncode == 0  # headers cannot know
    done = run("adapter", "--spectrum", cwd=tmp_path)
    assert done.returncode == 1
    screens.check("inspect-nan", screen(done))


def test_headers_need_neither_torch_nor_numpy():
    code = (
        "import sys; from lora_tools.cli import cli;"
        "cli.main(['inspect', sys.argv[1]], standalone_mode=False);"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(PLAIN)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["minilm-plain", "minilm-patterns", "minilm-dora", "moe-experts"])
def test_what_all_engines_make_of_a_fixture(name):
    done = run(name, "--for", "all")
    assert done.returncode == 4
    screens.check(f"inspect-for-all-{name}", screen(done))


def test_an_engine_that_loads_it_is_no_error():
    assert run("minilm-plain", "--for", "peft", "--for", "vllm").returncode == 0
    assert run("minilm-plain", "--for", "vllm", "--max-lora-rank", 8).returncode == 4
    assert run("minilm-patterns", "--for", "vllm@0.31").returncode == 4
    document = json.loads(run("minilm-patterns", "--for", "vllm@0.31", "--json").stdout)
    (verdict,) = document["verdicts"]
    assert verdict["verdict"] == "loads at the wrong strength"


def test_an_engine_that_is_none_is_a_wrong_command_line():
    done = run("minilm-plain", "--for", "nothing")
    assert done.returncode == 2
    assert "'nothing' is no runtime" in done.stderr


def test_files_of_unknown_spelling_are_judged(tmp_path):
    name = "mlx-qwen05b"
    done = run(f"{name}/adapters.safetensors", "--for", "mlx", "--json", cwd=real(name).parent)
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert (verdict["runtime"], verdict["verdict"]) == ("mlx", "loads")


def test_what_shrink_mends_is_mended(tmp_path):
    assert run("minilm-patterns", "--for", "llama.cpp").returncode == 4
    document = json.loads(run("minilm-patterns", "--for", "llama.cpp", "--json").stdout)
    (finding,) = document["verdicts"][0]["findings"]
    command = shlex.split(finding["fix"].replace("OUT", str(tmp_path / "fixed")))
    assert command[0] == "lora-tools"
    subprocess.run([sys.executable, "-m", "lora_tools", *command[1:]], check=True, cwd=FIXTURES)
    assert run(tmp_path / "fixed", "--for", "llama.cpp").returncode == 0


def test_a_page_and_a_picture_are_written_whole_or_not_at_all(tmp_path):
    page, picture = tmp_path / "a.html", tmp_path / "a.svg"
    done = run("minilm-plain", "--spectrum", "--html", page, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert "encoder.layer.0.attention.self.query" in page.read_text(encoding="utf-8")
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert {file.name for file in tmp_path.iterdir()} == {"a.html", "a.svg"}
    again = run("minilm-plain", "--html", page)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert run("minilm-plain", "--html", page, "--force").returncode == 0
    assert run("minilm-plain", "--html", tmp_path / "no" / "a.html").returncode == 1


def test_a_picture_of_no_known_kind_is_a_wrong_command_line(tmp_path):
    done = run("minilm-plain", "--plot", tmp_path / "a.gif")
    assert done.returncode == 2
    assert "ends in .png, .svg, .pdf" in done.stderr


def test_what_is_not_understood_is_not_drawn(tmp_path):
    done = run(
        "sam-lora/lora_rank4.safetensors", "--html", tmp_path / "a", cwd=real("sam-lora").parent
    )
    assert done.returncode == 1
    assert "nothing to draw" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_message_says_how_to_get_it(tmp_path):
    for package, option in (("jinja2", "--html"), ("matplotlib", "--plot")):
        code = (
            f"import sys; sys.modules[{package!r}] = None; from lora_tools.cli import main; main()"
        )
        file = tmp_path / "a.png"
        command = [sys.executable, "-c", code, "inspect", "minilm-plain", option, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=FIXTURES)
        assert done.returncode == 1
        assert "pip install 'lora-tools[report]'" in done.stderr
        assert list(tmp_path.iterdir()) == []
