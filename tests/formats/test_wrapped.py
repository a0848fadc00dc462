"""Adapters saved from wrapped models are those of the models within."""

import pytest
import torch
from conftest import FIXTURES
from runtimes.craft import craft, pair
from safetensors.torch import save_file

from lora_tools.adapter import read
from lora_tools.errors import FormatError
from lora_tools.formats.wrapped import unwrapped
from lora_tools.update import factors

PREFIX = "base_model.model."
LAYER = "encoder.layer.1."
WRAPPINGS = {
    "torch.compile": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "torch.compile around peft": lambda key: f"_orig_mod.{key}",
    "torch.compile of a layer": lambda key: key.replace(LAYER, f"{LAYER}_orig_mod."),
    "checkpointed activations": lambda key: key.replace(
        LAYER, f"{LAYER}_checkpoint_wrapped_module."
    ),
    "FSDP": lambda key: key.replace(LAYER, f"{LAYER}_fsdp_wrapped_module."),
    "DDP": lambda key: f"module.{key}",
    "peft around DDP": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "peft twice": lambda key: PREFIX + key,
    "all at once": lambda key: f"module._orig_mod.{PREFIX}module.{key}",
}


@pytest.mark.parametrize("fixture", ["minilm-plain", "minilm-dora", "minilm-tokens"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapped_adapter_is_the_adapter(wrapping, fixture, tmp_path):
    wrap = WRAPPINGS[wrapping]
    folder = craft(
        tmp_path / "wrapped",
        fixture,
        change=lambda tensors: {wrap(key): tensor for key, tensor in tensors.items()},
    )
    found, plain = read(folder), read(FIXTURES / fixture)
    assert set(found) == set(plain)
    for name in plain:
        ours, theirs = factors(found[name]), factors(plain[name])
        assert ours.scale == theirs.scale
        assert torch.equal(torch.as_tensor(ours.b), torch.as_tensor(theirs.b))
        assert torch.equal(torch.as_tensor(ours.a), torch.as_tensor(theirs.a))
    extras = {(extra.key, extra.kind, extra.name) for extra in plain.manifest.extras}
    assert {(extra.key, extra.kind, extra.name) for extra in found.manifest.extras} == extras
    assert any("what wrapped the model" in note for note in found.manifest.notes)


def test_a_part_of_a_model_that_peft_has_wrapped_keeps_its_place(tmp_path):
    keys = pair(f"language_model.{PREFIX}model.layers.0.self_attn.q_proj")
    folder = craft(tmp_path / "part", change=lambda _: keys, r=4, target_modules=["q_proj"])
    assert list(read(folder)) == ["language_model.model.layers.0.self_attn.q_proj"]


def test_flattened_names_are_unwrapped_too(tmp_path):
    name = "lora_unet_{}down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    for path, middle in (("plain", ""), ("compiled", "_orig_mod_")):
        tensors = pair(name.format(middle), up="lora_up.weight", down="lora_down.weight")
        save_file(tensors, tmp_path / f"{path}.safetensors")
    assert list(read(tmp_path / "compiled.safetensors")) == list(
        read(tmp_path / "plain.safetensors")
    )


def test_names_that_fall_together_are_two_adapters(tmp_path):
    folder = craft(
        tmp_path / "both",
        change=lambda tensors: tensors | {f"_orig_mod.{key}": t + 0 for key, t in tensors.items()},
    )
    with pytest.raises(FormatError, match="are the same tensor, once wrapped"):
        read(folder)


@pytest.mark.parametrize("name", ["model.module.q", "my_module.q", "modules.0._orig_mode.q"])
def test_a_name_that_only_looks_wrapped_stays(name):
    assert unwrapped(name) == name
