"""Adapters of vision-language models and of experts, under the names of two transformers."""

import json
import warnings
from pathlib import Path

import cells
import judge
import pytest
import tiny
import torch
import whole
from torch import nn

from lora_tools import read, staged, write
from lora_tools.formats.registry import format_named
from lora_tools.matching.naming import Names, names_in
from lora_tools.model import open_model
from lora_tools.rewrite import keep
from lora_tools.verbs.convert import translate

RENAMED = ("llava", "qwen2-vl", "qwen2.5-vl", "gemma3-vl", "mllama", "mistral3", "vit")


def trained(name: str, folder: Path, **more) -> None:
    """Save a tiny model and an adapter of all its layers, as PEFT does today."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.save(tiny.auto(name).from_config(tiny.config(name)), folder / "base")
        model = cells.load(name, folder / "base")
        wanted = cells.settings(model, "all-linear") | more
        cells.trained(model, wanted, folder / "today")


def converted(source: Path, base: Path, names: Names, out: Path) -> tuple[str, ...]:
    """Write an adapter under the names of a base, and return the notes."""
    adapter, format = read(source), format_named("peft")
    of = translate(adapter, format, paths=open_model(base), names=names)
    result = keep(of)
    with staged(out) as folder:
        rows = result.report("convert", "").watch(result)
        write(folder, result.manifest, rows, like=of.adapter, format=format)
    return of.manifest.notes


@pytest.mark.parametrize("name", RENAMED)
def test_an_adapter_takes_the_names_of_its_base_and_gives_them_back(name, tmp_path):
    trained(name, tmp_path)
    today, old, new = (tmp_path / each for each in ("today", "old", "new"))
    base = tmp_path / "base"
    notes = converted(today, base, "transformers4", old)
    before, after = whole.state(today), whole.state(old)
    assert before.keys() != after.keys()
    stored = {key.removesuffix(".weight") for key in whole.state(base)}
    prefix = "base_model.model."
    for key in after:
        assert key.removeprefix(prefix).partition(".lora_")[0] in stored
    assert any("are those that" in note for note in notes)
    converted(old, base, "transformers5", new)
    again = whole.state(new)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key], before[key]) for key in again)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = [
            cells.weights(judge.load(cells.load(name, base), each).merge_and_unload())
            for each in (today, new)
        ]
    cells.check_equal(merged[1], merged[0])


def test_what_is_stored_in_full_is_renamed_with_its_fields(tmp_path):
    """PEFT asks the configuration which module it is: by the end of a path, or by all of it."""
    trained("llava", tmp_path, modules_to_save=["model.multi_modal_projector.linear_2"])
    today, old = tmp_path / "today", tmp_path / "old"
    converted(today, tmp_path / "base", "transformers4", old)
    config = json.loads((old / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector.linear_2"]
    key = "base_model.model.multi_modal_projector.linear_2.weight"
    name = "base_model.model.model.multi_modal_projector.linear_2.weight"
    assert torch.equal(whole.state(old)[key], whole.state(today)[name])
    new = tmp_path / "new"
    converted(old, tmp_path / "base", "transformers5", new)
    assert whole.state(new).keys() == whole.state(today).keys()
    cells.check_verdict("llava", tmp_path / "base", new)


def test_experts_keep_the_names_that_only_the_memory_has(tmp_path):
    trained("mixtral", tmp_path)
    model = cells.load("mixtral", tmp_path / "base")
    cells.trained(model, cells.settings(model, "experts"), tmp_path / "experts")
    base, adapter = open_model(tmp_path / "base"), read(tmp_path / "experts")
    names = [module.name for module in adapter.manifest.modules]
    assert names_in(base, adapter, "transformers5").names == dict(zip(names, names, strict=True))
    found = names_in(base, adapter, "transformers4")
    assert not found.names
    assert found.unmatched == tuple(names)


def test_a_layer_that_the_base_lacks_keeps_its_name_and_is_named(tmp_path):
    trained("llava", tmp_path)
    other = tmp_path / "other"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny.config("llava")
        config.text_config.num_hidden_layers = 1
        model: nn.Module = tiny.auto("llava").from_config(config)
        tiny.save(model, other)
    notes = converted(tmp_path / "today", other, "transformers4", tmp_path / "old")
    (note,) = [note for note in notes if "are kept" in note]
    assert "layers.1." in note
