"""Stacked experts that Unsloth has trained, whose B may be in another order than PEFT's."""

import json

import pytest
import torch
from peft_varieties import VARIETIES, assert_is, expected_update, layer_of, save, trained
from safetensors.torch import load_file, save_file

from lora_tools import Fixed, shrink
from lora_tools.adapter import read, write
from lora_tools.errors import FormatError
from lora_tools.formats.registry import format_named
from lora_tools.formats.sites import Experts
from lora_tools.update import factors
from lora_tools.verbs.convert import convert


def unsloth(folder, layout=None, *, by_expert=True):
    """Save an adapter as Unsloth would; return the model whose updates it holds."""
    model = trained(VARIETIES["experts"].config)
    save(model, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for key, b in tensors.items():
        if by_expert and "experts" in key and "lora_B" in key:
            tensors[key] = b.reshape(len(b), 4, 3).mT.reshape(b.shape).contiguous()
    save_file(tensors, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["auto_mapping"] = {"parent_library": "transformers", "unsloth_fixed": True}
    if layout:
        config["lora_B_layout"] = layout
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model


def check(adapter, model, tolerance=1e-6):
    for module in adapter.manifest.modules:
        wanted = expected_update(layer_of(model, module), module).detach()
        found = factors(adapter[module.name]).dense(torch.float64)
        assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.norm()))


@pytest.mark.parametrize("layout", ["grouped_by_expert", "rank_major"])
def test_the_order_that_is_stated_is_read(layout, tmp_path):
    model = unsloth(tmp_path / "in", layout, by_expert=layout == "grouped_by_expert")
    adapter = read(tmp_path / "in")
    for module in adapter.manifest.modules:
        found = factors(adapter[module.name]).dense(torch.float64)
        assert_is(found, expected_update(layer_of(model, module), module).detach())


def test_what_is_written_is_in_pefts_order_and_says_so(tmp_path):
    model = unsloth(tmp_path / "in", "grouped_by_expert")
    source = read(tmp_path / "in")
    for name, made in {
        "convert": convert(source, format_named("peft")),
        "shrink": shrink(source, Fixed(4)),
    }.items():
        out = tmp_path / name
        out.mkdir()
        write(out, made.manifest, ((c.module, c.update) for c in made), like=source)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["lora_B_layout"] == "rank_major"
        again = read(out)
        assert all(module.is_pair for module in again.manifest.modules)
        check(again, model)


def test_an_order_that_nobody_states_is_no_guess(tmp_path):
    unsloth(tmp_path / "in")
    with pytest.raises(FormatError, match=r'"grouped_by_expert".*"rank_major"'):
        read(tmp_path / "in")
    unsloth(tmp_path / "odd", "by_chance")
    with pytest.raises(FormatError, match="lora_B_layout"):
        read(tmp_path / "odd")


def test_one_column_per_expert_has_one_order(tmp_path):
    model = trained(VARIETIES["experts"].config | {"r": 1})
    save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["auto_mapping"] = {"unsloth_fixed": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read(tmp_path)
    assert any(isinstance(module.site, Experts) for module in adapter.manifest.modules)
    check(adapter, model)
