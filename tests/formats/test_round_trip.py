"""What every naming must do: read what it wrote, bit for bit, and be told from the others."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from namings import alphas, filled, manifests, without_parts

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.dtypes import torch_dtype
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.update import factors

WRITES = [
    ("kohya", "unet"),
    ("kohya", "transformer"),
    ("kohya", "diffusion_model"),
    ("kohya", "text_encoder"),
    ("kohya", "model"),
    ("diffusers", "unet"),
    ("diffusers", "transformer"),
    ("diffusers", "text_encoder"),
    ("comfyui", "diffusion_model"),
    ("comfyui", "text_encoder"),
    ("xlabs", "double_blocks"),
    ("mlx", "model"),
    ("gguf", "qwen2"),
    ("torchtune", "decoder"),
]
ONE_SCALE = ("xlabs", "mlx", "gguf", "torchtune")
"""Formats with one scale for all: whoever writes folds the difference."""
BASES = {"torchtune": {"model_type": "llama", "num_attention_heads": 1}}
"""Configurations of base models, for formats whose rows depend on their heads."""


@pytest.mark.parametrize(("name", "component"), WRITES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_what_is_written_is_read_again(name, component, data):
    naming = format_named(name)
    base = BASES.get(name)
    manifest = replace(data.draw(manifests(component, naming.supports)), base=base)
    try:
        written = naming.write(manifest)
    except UnsupportedError:
        assert name in ("diffusers", *ONE_SCALE)  # DoRA in some modules only
        return
    except FormatError:
        assert base is not None
        assert any(module.out % 2 for module in manifest.modules)  # no pairs of rows
        return
    config = json.loads(json.dumps(dict(written.config))) or None
    assert [f.name for f in FORMATS if f.detect(written.specs, config)] == [name]
    backwards = dict(reversed(written.specs.items()))
    assert naming.detect(backwards, config)
    again = naming.read(Contents(written.specs, config, written.metadata, alphas(written), base))
    assert again.modules == written.modules
    assert [m.scale for m in again.modules] == [m.scale for m in written.modules]
    assert again.extras == ()
    if name not in ONE_SCALE:
        for before, after in zip(manifest.modules, again.modules, strict=True):
            assert after.scale == before.scale
            assert (after.name, after.site, after.shape) == (before.name, before.site, before.shape)
    spelled_again = naming.write(again)
    assert spelled_again.specs == written.specs
    assert without_parts(spelled_again) == without_parts(written)


@pytest.mark.parametrize(("name", "component"), WRITES)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_tensors_go_through_updates_bit_for_bit(name, component, data):
    naming = format_named(name)
    try:
        drawn = data.draw(manifests(component, naming.supports))
        manifest = naming.write(replace(drawn, base=BASES.get(name)))
    except (UnsupportedError, FormatError):
        return
    tensors = filled(manifest.specs)
    for module in manifest.modules:
        if "alpha" in module.parts:
            key, spec = module.parts["alpha"]
            tensors[key] = torch.tensor(module.alpha, dtype=torch_dtype(spec.dtype))
            assert float(tensors[key]) == module.alpha
        update = naming.update(module, tensors)
        assert factors(update).scale == module.scale
        for key, value in naming.tensors(module, update).items():
            value = torch.as_tensor(value)
            assert value.dtype == tensors[key].dtype
            assert torch.equal(value, tensors[key])
            tensors.pop(key)
    assert not tensors


def test_formats_that_write_have_kinds_and_names():
    assert len({format.name for format in FORMATS}) == len(FORMATS)
    assert all(format.about for format in FORMATS)


def test_a_neighbours_configuration_does_not_decide():
    kohya = format_named("kohya")
    from lora_tools.files.header import Spec

    specs = {
        "lora_unet_x.lora_down.weight": Spec("F32", (2, 3)),
        "lora_unet_x.lora_up.weight": Spec("F32", (4, 2)),
    }
    peft = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    assert [f.name for f in FORMATS if f.detect(specs, None)] == ["kohya"]
    assert kohya.detect(specs, peft)
    assert replace(kohya.read(Contents(specs, None, {}, {})).modules[0], parts={}).alpha is None
