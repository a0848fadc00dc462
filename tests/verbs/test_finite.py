"""Numbers that are none, and numbers beyond measure, in every verb that reads factors."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import FIXTURES
from fuzz.seeds import Seed, seeds
from safetensors.torch import load_file, save_file

from lora_tools import Fixed, diff, read, shrink
from lora_tools.cli import cli
from lora_tools.errors import NonFiniteError, UnsupportedError
from lora_tools.formats.registry import FORMATS as ALL
from lora_tools.report import Report, Row, total
from lora_tools.text import json_text
from lora_tools.verbs.convert import convert

FORMATS = {format.name: format for format in ALL}
TARGETS = ["peft", "kohya", "comfyui", "diffusers", "mlx"]
PARTS = {
    "A": ("minilm-plain", "layer.3.attention.self.value.lora_A"),
    "B": ("minilm-plain", "layer.3.attention.self.value.lora_B"),
    "magnitude": ("minilm-dora", "layer.3.attention.self.value.lora_magnitude"),
    "bias": ("minilm-lorabias", "layer.3.attention.self.value.lora_B.bias"),
}


def spoiled(part: str, folder: Path, change) -> Path:
    """Copy the fixture that has a part, its tensor of that name changed in place."""
    fixture, name = PARTS[part]
    shutil.copytree(FIXTURES / fixture, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (key,) = (key for key in tensors if name in key and (part != "B" or "bias" not in key))
    tensors[key] = change(tensors[key])
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def poke(bad: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = bad
        return tensor

    return change


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", PARTS)
def test_every_verb_names_what_is_no_number(part, bad, tmp_path):
    source = spoiled(part, tmp_path / "in", poke(bad))
    verbs = {f"to {target}": lambda t=target: list(convert(read(source), FORMATS[t], drop=()))
             for target in TARGETS}  # fmt: skip
    verbs["float32"] = lambda: list(convert(read(source), FORMATS["peft"], dtype="F32"))
    verbs["shrink"] = lambda: list(shrink(read(source), Fixed(2)))
    verbs["diff"] = lambda: diff(read(source), read(source))
    stated = {}
    for verb, act in verbs.items():
        with pytest.raises((NonFiniteError, UnsupportedError)) as caught:
            act()
        if caught.type is NonFiniteError:  # else a format that has no such part, which it says
            stated[verb] = str(caught.value)
    assert len(stated) >= 4
    for verb, words in stated.items():
        assert PARTS[part][1] in words, verb
        assert str(tmp_path) in words, verb


@pytest.mark.parametrize("size", [1e-200, 1e-300, 1e200])
def test_numbers_beyond_measure_are_refused_or_measured(size, tmp_path):
    source = spoiled("B", tmp_path / "in", lambda tensor: tensor.double() * size)
    for act in (
        lambda: list(convert(read(source), FORMATS["kohya"])),
        lambda: list(shrink(read(source), Fixed(2))),
        lambda: diff(read(source), read(source)),
    ):
        with pytest.raises(NonFiniteError, match=r"layer\.3\..*(squared in|exceed) float64"):
            act()


@pytest.mark.parametrize("alpha", [1e-308, 1e308])
def test_an_alpha_beyond_measure_is_refused(alpha, tmp_path):
    source = spoiled("A", tmp_path / "in", lambda tensor: tensor)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    for command in (["convert", source, tmp_path / "out", "--to", "kohya"],
                    ["shrink", source, tmp_path / "out", "--rank", "2"]):  # fmt: skip
        done = CliRunner().invoke(cli, [str(word) for word in command])
        assert done.exit_code == 1
        assert not (tmp_path / "out").exists()
        assert "NaN" not in done.output


def test_inspect_shows_what_the_others_refuse_in_sound_json(tmp_path):
    source = spoiled("A", tmp_path / "in", poke(math.nan))
    done = CliRunner().invoke(cli, ["inspect", str(source), "--spectrum", "--json"])
    assert done.exit_code in (0, 1)
    json.loads(done.stdout, parse_constant=pytest.fail)


def test_no_report_can_hold_what_json_lacks():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            json_text({"error": bad})


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1.0, 1e160, 1e300])
def test_the_error_of_several_modules_is_right_at_any_size(size):
    assert total([(3 * size, 0.1), (4 * size, 0.2)]) == pytest.approx(
        math.hypot(0.3, 0.8) / 5, rel=1e-2 if size < 1e-300 else 1e-12
    )
    rows = [
        Row(
            module=f"m{i}",
            key_prefix=f"m{i}",
            shape=(4, 4),
            rank_before=2,
            rank_after=1,
            rank_stored=1,
            scale_before=1.0,
            scale=1.0,
            alpha=1.0,
            dtype="F64",
            norm=norm * size,
            energy=0.9,
            error=0.1 * norm,
            optimal_error=0.05,
            sigma_max=size,
            sigma_discarded=size,
            outcome="shrunk",
        )
        for i, norm in enumerate((1.0, 2.0))
    ]
    json.loads(Report("shrink", rows=rows).to_json(), parse_constant=pytest.fail)


LIMIT = {"time_step_limit": [0.0, math.inf], "of": {"nothing": -math.inf, "none": [math.nan]}}


def with_limit(seed: Seed, folder: Path, config: str) -> Path:
    """Write a seed whose configuration holds what JSON lacks, as Python writes it."""
    folder.mkdir()
    for name, data in seed.files.items():
        (folder / name).write_bytes(data)
    (folder / config).write_text(json.dumps(json.loads(seed.files[config]) | LIMIT))
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("peft", "shrink {x} {out} --rank 2"),
        ("dora", "shrink {x} {out} --rank 2"),
        ("mlx", "shrink {x} {out} --rank 2"),
        ("peft", "convert {x} {out} --to peft --dtype float32"),
        ("base", "merge {x} {peer} {out}"),
        ("base", "merge {x} {peer} {out} --untie"),
        ("sharded", "merge {x} {peer} {out} --dtype float32"),
        ("base-fp8", "merge {x} {peer} {out} --dtype float32"),
    ],
)
def test_a_configuration_keeps_the_numbers_that_json_lacks(kind, words, tmp_path):
    """A base of Mamba-2 has Infinity in its config.json, and whoever reads it needs it."""
    config = "adapter_config.json" if words.startswith(("shrink", "convert")) else "config.json"
    source = with_limit(seeds()[kind], tmp_path / "in", config)
    peer = with_limit(seeds()["peft"], tmp_path / "peer", "adapter_config.json")
    out = tmp_path / "out"
    command = words.format(x=source, peer=peer, out=out).split()
    done = CliRunner().invoke(cli, [*command, "--jobs", "1"] if "convert" not in words else command)
    assert done.exit_code == 0, done.output
    written = json.loads((out / config).read_text())
    assert repr({key: written[key] for key in LIMIT}) == repr(LIMIT)
    json.loads((out / "lora_tools_report.json").read_text(), parse_constant=pytest.fail)
