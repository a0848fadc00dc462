"""Keys and configurations of every year are read, and kept."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from peft import LoraConfig
from peft_manifests import CONFIG, describe, manifests, on_disk, pair

from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.peft import Peft
from lora_tools.formats.peft.keys import LORA_KEY, PREFIX
from lora_tools.update import LowRank


@given(manifests())
def test_what_is_written_is_read_again(manifest):
    written = Peft().write(manifest)
    assert written.format == "peft"
    assert written.modules == manifest.modules
    assert written.config["unknown"] == [1]
    again = Peft().read(Contents(written.specs, on_disk(written.config), written.metadata))
    assert sorted(again.modules, key=lambda m: m.name) == sorted(
        manifest.modules, key=lambda m: m.name
    )
    assert again.extras == ()


@pytest.mark.parametrize(
    ("alpha", "rslora"),
    [(None, False), (0.0, False), (None, True), (8.0, False), (8.0, True), (3.0, True)],
)
def test_a_module_of_another_format_keeps_its_scale(alpha, rslora):
    manifest = describe(pair("q") | pair("k"))
    q, k = manifest.modules
    mixed = replace(manifest, modules=(replace(q, alpha=alpha, rslora=rslora), k))
    written = Peft().write(mixed)
    again = Peft().read(Contents(written.specs, on_disk(written.config), {}))
    for before, after in zip(mixed.modules, again.modules, strict=True):
        assert after.scale == pytest.approx(before.scale, rel=1e-15)


@pytest.mark.parametrize(
    ("key", "key_prefix", "part"),
    [
        ("m.q.lora_A.weight", "m.q", "A"),
        ("m.q.lora_B.default.weight", "m.q", "B"),
        ("m.q.lora_A.my_adapter.weight", "m.q", "A"),
        ("m.q.lora_B.bias", "m.q", "B"),
        ("m.e.lora_embedding_A", "m.e", "embedding_A"),
        ("m.e.lora_embedding_B.default", "m.e", "embedding_B"),
        ("m.q.lora_magnitude_vector", "m.q", "magnitude_vector"),
        ("m.q.lora_magnitude_vector.default.weight", "m.q", "magnitude_vector"),
    ],
)
def test_spellings_of_keys(key, key_prefix, part):
    match = LORA_KEY.fullmatch(key)
    assert (match["key_prefix"], match["part"]) == (key_prefix, part)


@pytest.mark.parametrize("suffix", [".lora_magnitude_vector", ".lora_magnitude_vector.weight"])
def test_magnitudes_of_every_year_are_read(suffix):
    specs = pair("q") | {f"{PREFIX}q{suffix}": Spec("F32", (4,))}
    module = describe(specs, use_dora=True).modules[0]
    assert module.parts["magnitude"].key == f"{PREFIX}q{suffix}"


def test_names_without_the_prefix_are_read_noted_and_written_with_it():
    specs = {key.removeprefix(PREFIX): spec for key, spec in pair("layers.0.q").items()}
    manifest = describe(specs)
    assert [module.name for module in manifest.modules] == ["layers.0.q"]
    assert manifest.notes[0].startswith("1 names lack PEFT's prefix")
    assert Peft().write(manifest).specs == pair("layers.0.q")


CONFIGS = {
    "2023": {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q", "k"],
        "task_type": "CAUSAL_LM",
    },
    "2024": {
        "alpha_pattern": {},
        "auto_mapping": None,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 16,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "peft_type": "LORA",
        "r": 2,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["k", "q"],
        "use_dora": False,
        "use_rslora": False,
    },
    "2026": json.loads(
        json.dumps(
            LoraConfig(r=2, lora_alpha=16, target_modules=["q", "k"]).to_dict(), default=list
        )
    ),
    "tomorrow": {"r": 2, "lora_alpha": 16, "target_modules": ["q", "k"], "favourite": {"x": [1]}},
    "least": {"peft_type": "LORA", "r": 2, "lora_alpha": 16},
}


@pytest.mark.parametrize("year", CONFIGS)
def test_configurations_of_every_year_are_read_and_kept(year):
    config = CONFIGS[year]
    manifest = Peft().read(Contents(pair("m.q") | pair("m.k"), config, {}))
    assert [(m.name, m.r, m.scale) for m in manifest.modules] == [("m.q", 2, 8.0), ("m.k", 2, 8.0)]
    assert manifest.config == config
    assert config.items() <= Peft().write(manifest).config.items()


def test_header_metadata_is_kept():
    manifest = Peft().read(Contents(pair("q"), CONFIG, {"author": "me"}))
    assert manifest.metadata == {"author": "me"}
    assert Peft().write(manifest).metadata == {"format": "pt", "author": "me"}


def test_an_expression_becomes_a_list_of_the_modules():
    manifest = describe(pair("h.0.q") | pair("h.1.q"), target_modules=r"h\.\d\.q")
    assert Peft().write(manifest).config["target_modules"] == ["h.0.q", "h.1.q"]


@pytest.mark.parametrize(
    ("specs", "config", "is_peft"),
    [
        (pair("q"), CONFIG, True),
        (pair("q"), None, True),
        ({"x": Spec("F32", (1,))}, {"peft_type": "IA3"}, True),
        ({"x": Spec("F32", (1,))}, {"r": 8, "lora_alpha": 8}, True),
        ({"x": Spec("F32", (1,))}, {"model_type": "bert"}, False),
        ({"lora_unet_x.lora_down.weight": Spec("F32", (1, 1))}, None, False),
        ({}, None, False),
    ],
)
def test_detection(specs, config, is_peft):
    assert Peft().detect(specs, config) is is_peft
    assert Peft().detect(dict(reversed(specs.items())), config) is is_peft


def test_an_update_has_its_parts(tmp_path):
    manifest = describe(pair("q"))
    tensors = {
        part.key: torch.randn(part.spec.shape) for part in manifest.modules[0].parts.values()
    }
    update = Peft().update(manifest.modules[0], tensors)
    assert isinstance(update, LowRank)
    assert (update.alpha, update.rslora, update.groups) == (4.0, False, 1)
    back = Peft().tensors(manifest.modules[0], update)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
