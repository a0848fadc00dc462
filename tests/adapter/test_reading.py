import shutil

import pytest
import torch
from conftest import FIXTURES
from handmade import CONFIG, make
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.update import LowRank


def test_an_adapter_is_a_mapping_of_updates(folder):
    adapter = read(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    assert list(adapter) == ["h.0.k", "h.0.q", "h.1.k", "h.1.q"]
    assert len(adapter) == 4
    for name, update in adapter.items():
        assert isinstance(update, LowRank)
        assert torch.equal(update.a, stored[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(update.b, stored[f"base_model.model.{name}.lora_B.weight"])
        assert update.scale == 2.0


def test_what_an_adapter_says_of_itself(folder):
    adapter = read(folder)
    file = folder / "adapter_model.safetensors"
    assert adapter.path == folder
    assert adapter.config == CONFIG
    assert adapter.base_model == "some/base"
    assert adapter.params == sum(tensor.numel() for tensor in load_file(file).values())
    assert adapter.nbytes == file.stat().st_size
    assert [extra.key for extra in adapter.manifest.extras] == ["base_model.model.head.weight"]


def test_reading_needs_no_tensor_before_one_is_asked_for(folder):
    adapter = read(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "h.0.q" in adapter
    assert "h.9.q" not in adapter
    assert adapter.module("h.0.q").shape == (4, 3)
    with pytest.raises(FileNotFoundError):
        adapter["h.0.q"]


def test_an_unknown_module_is_a_key_error(folder):
    with pytest.raises(KeyError):
        read(folder)["h.9.q"]
    with pytest.raises(KeyError):
        read(folder).module("h.9.q")


def test_tensors_of_no_known_format_are_named(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"in no known adapter format.*named weight") as caught:
        read(tmp_path)
    assert caught.value.__notes__ == [
        "Known formats: peft, kohya, diffusers, comfyui, mlx, xlabs, gguf, torchtune, loralib,"
        " litgpt, megatron."
    ]


def test_a_missing_configuration_is_an_error(folder):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FormatError, match="alpha is unknown") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "adapter_config.json" in str(caught.value)
    assert "--alpha N" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
    ],
)
def test_a_damaged_configuration_is_an_error_that_names_the_file(text, fault, folder):
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(FormatError, match=fault) as caught:
        read(folder)
    assert str(folder / "adapter_config.json") in str(caught.value)


def test_a_refusal_names_the_adapter_and_keeps_its_hint(tmp_path):
    folder = make(tmp_path / "a", CONFIG | {"init_lora_weights": "pissa"})
    with pytest.raises(UnsupportedError, match="pissa") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "path_initial_model_for_weight_conversion" in caught.value.__notes__[0]


def test_a_contradiction_names_the_adapter(tmp_path):
    folder = make(tmp_path / "a", CONFIG | {"r": 3})
    with pytest.raises(FormatError, match="do not fit together") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_many_contradictions_are_cut_and_counted(tmp_path):
    path = make(tmp_path / "adapter", CONFIG | {"r": 3})
    factors = {
        f"base_model.model.h.{i}.q.lora_{part}.weight": torch.randn(2, 2)
        for i in range(9)
        for part in "AB"
    }
    save_file(factors, path / "adapter_model.safetensors")
    with pytest.raises(FormatError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == "  and 4 more"
    assert "lora-tools inspect" in caught.value.__notes__[0]


def test_an_adapter_that_contradicts_itself_can_be_looked_at(tmp_path):
    path = make(tmp_path / "adapter", CONFIG | {"target_modules": ["q"]})
    adapter = read(path, strict=False)
    assert list(adapter) == ["h.0.q", "h.1.q"]
    assert len(adapter.manifest.problems) == 2
    assert adapter.manifest.specs.keys() == adapter.tensors.keys()


def test_what_zero_3_has_not_gathered_is_named_as_that(tmp_path):
    tensors = load_file(FIXTURES / "minilm-plain" / "adapter_model.safetensors")
    first = next(iter(tensors))
    shutil.copytree(FIXTURES / "minilm-plain", tmp_path / "empty")
    save_file(tensors | {first: torch.empty(0)}, tmp_path / "empty" / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=f"1 of 24 tensors are empty, as .* ZeRO-3 .*{first}"):
        read(tmp_path / "empty")
