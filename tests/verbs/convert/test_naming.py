"""A family that no file has is converted by its table alone, from every naming to every other."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.architectures import families, pipelines
from lora_tools.architectures.family import DIT, Family
from lora_tools.architectures.tables import halves, rows
from lora_tools.formats.registry import format_named
from lora_tools.verbs.convert import convert
from lora_tools.verbs.inspect import inspect

MADE_UP = Family(
    "Made-up",
    hub="fine",
    containers={**DIT, "diffusers": DIT["diffusers"]._replace(dialects=("fine",))},
    dialects={
        "original": {
            "trunk.#.": (
                "branches.#.",
                {
                    "mixer.qkv": rows("mix.to_{q,k,v}", groups="2"),
                    "enter_{a,b}": "enter.{0,1}",
                    "scale_shift": halves("shift_scale"),
                },
            ),
        }
    },
    blocks={"branches": (4,)},
)
WIDE = 4
FINE = {f"branches.3.mix.to_{part}": 8 for part in "qkv"}
FINE |= {"branches.3.enter.1": 6, "branches.0.shift_scale": 10}
ORIGINAL = {"trunk.3.mixer.qkv": 24, "trunk.3.enter_b": 6, "trunk.0.scale_shift": 10}


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, MADE_UP))
    pipelines.known.cache_clear()
    yield
    pipelines.known.cache_clear()


def originals(fine):
    """Return the weights' changes in the original's layout, written out by hand."""
    q, k, v = (fine[f"branches.3.mix.to_{part}"] for part in "qkv")
    turns = [part[rows] for rows in (slice(0, 4), slice(4, 8)) for part in (q, k, v)]
    shift, scale = np.split(fine["branches.0.shift_scale"], 2)
    return {
        "trunk.3.mixer.qkv": np.concatenate(turns),
        "trunk.3.enter_b": fine["branches.3.enter.1"],
        "trunk.0.scale_shift": np.concatenate([scale, shift]),
    }


def peft(folder):
    """Write an adapter of the model as peft does, without any of our code."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    tensors, a = {}, draw.integers(-4, 4, (2, WIDE))
    for path, out in FINE.items():
        own = a if "mix" in path else draw.integers(-4, 4, (2, WIDE))
        tensors[f"base_model.model.{path}.lora_A.weight"] = own
        tensors[f"base_model.model.{path}.lora_B.weight"] = draw.integers(-4, 4, (out, 2))
    tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ".*"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def changed(folder, format):
    """Return what a file adds to each weight, from its tensors alone: every scale is 1."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    up, down = (".lora_up", ".lora_down") if format == "kohya" else (".lora_B", ".lora_A")
    found = {}
    for key, b in tensors.items():
        key_prefix, suffix, _ = key.partition(f"{up}.weight")
        if suffix:
            a = tensors[f"{key_prefix}{down}.weight"]
            alpha = tensors.get(f"{key_prefix}.alpha", np.float32(len(a)))
            found[key_prefix] = float(alpha) / len(a) * b.astype(np.float64) @ a
    return found


def written(fine):
    """Return the changes as each format has them."""
    theirs = originals(fine)
    return {
        "peft": {f"base_model.model.{path}": delta for path, delta in fine.items()},
        "diffusers": {f"transformer.{path}": delta for path, delta in fine.items()},
        "comfyui": {f"diffusion_model.{path}": delta for path, delta in theirs.items()},
        "kohya": {f"lora_unet_{k.replace('.', '_')}": delta for k, delta in theirs.items()},
    }


def converted(source, out, target):
    out.mkdir()
    plan = convert(read(source), format_named(target))
    outcome = plan.report("convert")
    updates = outcome.watch(plan)
    write(out, plan.manifest, updates, like=plan.source.adapter, format=plan.source.format)
    return out


PAIRS = itertools.permutations(["peft", "diffusers", "comfyui", "kohya"], 2)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_new_family_is_a_table_and_nothing_else(one, other, made_up, tmp_path):
    source = peft(tmp_path / "made")
    fine = {k.removeprefix("base_model.model."): v for k, v in changed(source, "peft").items()}
    expected = written(fine)
    assert {name: delta.shape[0] for name, delta in originals(fine).items()} == ORIGINAL
    if one != "peft":
        source = converted(source, tmp_path / "one", one)
    out = converted(source, tmp_path / "other", other)
    found, own = changed(out, other), expected[other]
    assert found.keys() == own.keys()
    for name, delta in own.items():
        np.testing.assert_allclose(found[name], delta, rtol=1e-5, atol=1e-5)


def test_without_its_table_it_is_nobodys(tmp_path):
    """What the test above shows depends on the table alone."""
    source = read(peft(tmp_path / "made"))
    names = [module.name for module in source.manifest.modules]
    assert pipelines.components(names) == {}


def test_a_model_with_one_set_of_names_has_the_prefix_that_its_trainers_load(tmp_path):
    """Qwen-Image's authors name it as diffusers does; nobody loads ``lora_transformer_`` of it."""
    paths = [f"transformer_blocks.{i}.{x}" for i in range(60) for x in ("attn.to_q", "img_mod.1")]
    tensors = {}
    for path in paths:
        out = 6 * WIDE if path.endswith("mod.1") else WIDE
        tensors[f"transformer.{path}.lora_A.weight"] = np.ones((2, WIDE), np.float32)
        tensors[f"transformer.{path}.lora_B.weight"] = np.ones((out, 2), np.float32)
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    for target, before in (("kohya", "lora_unet_"), ("comfyui", "diffusion_model.")):
        plan = convert(read(tmp_path), format_named(target))
        expected = {
            before + (path.replace(".", "_") if target == "kohya" else path) for path in paths
        }
        assert {job.target.module.key_prefix for job in plan.jobs} == expected


@pytest.mark.parametrize(
    ("base", "name"), [("", ".0.img_attn.qkv"), ("hunyuan-video", ".0.img_attn_qkv")]
)
def test_what_is_taken_for_the_usual_family_is_said(base, name, tmp_path):
    """Two blocks are HunyuanVideo's as well, whose trainers have another dot in these names."""
    tensors = {}
    for block in range(2):
        before = f"lora_unet_double_blocks_{block}_img_attn_qkv"
        tensors[f"{before}.lora_down.weight"] = np.ones((2, 12), np.float32)
        tensors[f"{before}.lora_up.weight"] = np.ones((36, 2), np.float32)
    header = {"ss_base_model_version": base} if base else None
    save_file(tensors, tmp_path / "few.safetensors", metadata=header)
    adapter = read(tmp_path / "few.safetensors")
    assert next(iter(adapter)).endswith(name)
    notes = [note for note in inspect(adapter).to_dict()["notes"] if "taken for" in note]
    report = convert(adapter, format_named("diffusers")).report("convert")
    assert [note for note in report.notes if "taken for" in note] == notes
    assert len(notes) == (not base)
    for note in notes:
        assert note.startswith("2 modules are taken for those of Flux.1")
        assert "HunyuanVideo would lay them out otherwise" in note
