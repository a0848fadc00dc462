"""The adapters of fixtures/ are read whole and written as they were."""

import pytest
import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from peft_manifests import on_disk
from peft_varieties import FIXTURES

from lora_tools.adapter import read
from lora_tools.formats.base import Contents
from lora_tools.formats.peft import Peft
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear

ADAPTERS = sorted(path.parent for path in FIXTURES.glob("*/adapter_config.json"))


assert ADAPTERS, f"{FIXTURES} holds no adapters: python fixtures/make.py makes them"


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_a_fixture_is_read_whole(folder):
    adapter = read(folder)
    config = LoraConfig.from_pretrained(str(folder))
    key_prefixes = {key.partition(".lora_")[0] for key in adapter.tensors if ".lora_" in key}
    assert {module.key_prefix for module in adapter.manifest.modules} == key_prefixes
    assert adapter.manifest.specs == adapter.tensors.specs
    for module in adapter.manifest.modules:
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module.owner), config.r)
        alphas = config.alpha_pattern
        alpha = alphas.get(get_pattern_key(alphas, module.owner), config.lora_alpha)
        assert (module.r, module.alpha, module.rslora) == (r, alpha, config.use_rslora)


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_a_fixture_goes_through_its_updates_bit_for_bit(folder):
    adapter = read(folder)
    keys = {extra.key for extra in adapter.manifest.extras}
    for module in adapter.manifest.modules:
        for key, tensor in adapter.format.tensors(module, adapter[module.name]).items():
            keys.add(key)
            original = adapter.tensors[key]
            assert tensor.dtype == original.dtype
            assert torch.equal(tensor, original)
    assert keys == set(adapter.tensors)


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_a_fixture_that_is_spelled_anew_reads_the_same(folder):
    manifest = read(folder).manifest
    written = Peft().write(manifest)
    assert written.specs == manifest.specs
    again = Peft().read(Contents(written.specs, on_disk(written.config), written.metadata))
    assert again.modules == manifest.modules
    assert again.extras == manifest.extras


EXPECTED = {
    "minilm-plain": (12, "encoder.layer.0.attention.self.query", Linear(), 384, 384, 16),
    "minilm-patterns": (24, "encoder.layer.0.attention.self.query", Linear(), 384, 384, 16),
    "minilm-embedding": (7, "embeddings.word_embeddings", Embedding(), 384, 30522, 4),
    "gpt2-conv1d": (8, "transformer.h.0.attn.c_attn", Linear(transposed=True), 144, 48, 4),
    "conv-mixed": (5, "grouped", Convolution(8, (3, 3), 2), 6, 72, 4),
    "moe-experts": (
        6,
        "model.layers.0.mlp.experts.gate_up_proj",
        Experts("gate_up_proj", 4),
        48,
        32,
        2,
    ),
    "mha": (2, "attention.out_proj", Linear(), 24, 24, 4),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_fixture_holds_what_its_recipe_says(name):
    count, module_name, site, out, inp, r = EXPECTED[name]
    adapter = read(FIXTURES / name)
    module = adapter.module(module_name)
    assert len(adapter) == count
    assert (module.site, module.out, module.inp, module.r) == (site, out, inp, r)
