import json
import shutil
from pathlib import Path

import pytest
import reference
import torch
from bases import BASES
from looks import looked_at
from safetensors.torch import save_file

from lora_tools import inspect, read
from lora_tools.model import open_model

FIXTURES = Path(__file__).parents[3] / "fixtures"


@pytest.fixture
def base(tmp_path):
    """A folder with the base of a fixture, in a type."""

    def make(name: str, dtype: torch.dtype, **changes: torch.Tensor) -> Path:
        state = BASES[name]().state_dict()
        tensors = {
            key: tensor.to(dtype).clone() if tensor.is_floating_point() else tensor
            for key, tensor in state.items()
        }
        save_file(tensors | changes, tmp_path / "model.safetensors")
        return tmp_path

    return make


def compared(name: str, base: Path) -> dict:
    document = inspect(read(FIXTURES / name), base=open_model(base)).to_dict()
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["minilm-plain", "gpt2-conv1d", "moe-experts", "mha"])
def test_ratios_are_those_of_dense_matrices(name, dtype, base):
    folder = base(name, dtype)
    weights = open_model(folder).tensors
    deltas = reference.deltas(FIXTURES / name)
    document = compared(name, folder)
    prefixes = {module.name: module.key_prefix for module in read(FIXTURES / name).manifest.modules}
    for module in document["modules"]:
        weight = weights[module["base_tensor"]].double()
        norm = float(deltas[prefixes[module["module"]]].norm())
        assert module["base_norm"] == pytest.approx(float(weight.norm()), rel=1e-6)
        assert module["relative_norm"] == pytest.approx(norm / float(weight.norm()), rel=1e-5)
    assert document["base"] == str(folder)
    assert document["prefixes"] == document["unmatched"] == document["misshapen"] == []
    specs = weights.specs.values()
    assert document["totals"]["base_params"] == sum(spec.numel for spec in specs)
    assert document["totals"]["base_bytes"] == sum(spec.nbytes for spec in specs)


def test_what_does_not_fit_is_named(base):
    key = "encoder.layer.2.attention.self.query.weight"
    folder = base("minilm-plain", torch.float32, **{key: torch.ones(3, 5)})
    document = compared("minilm-plain", folder)
    assert document["misshapen"] == [
        {
            "module": key.removesuffix(".weight"),
            "shape": [384, 384],
            "base_tensor": key,
            "base_shape": [3, 5],
        }
    ]
    described = {module["module"]: module["base_tensor"] for module in document["modules"]}
    assert described[key.removesuffix(".weight")] is None


def test_another_model_holds_no_module(base):
    folder = base("gpt2-conv1d", torch.float32)
    document = compared("minilm-plain", folder)
    assert len(document["unmatched"]) == len(document["modules"])
    assert all(module["base_tensor"] is None for module in document["modules"])


def test_packed_numbers_have_no_norm(base):
    key = "encoder.layer.2.attention.self.query.weight"
    packed = torch.ones(384, 384, dtype=torch.uint8)
    document = compared("minilm-plain", base("minilm-plain", torch.float32, **{key: packed}))
    (module,) = (m for m in document["modules"] if m["module"] == key.removesuffix(".weight"))
    assert module["base_tensor"] == key
    assert module["base_norm"] is None is module["relative_norm"]


def test_the_base_that_an_adapter_names_is_not_looked_at(base, tmp_path):
    folder = base("minilm-plain", torch.float32)
    adapter = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "minilm-plain", adapter)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(folder)}
    file.write_text(json.dumps(config))
    with looked_at() as paths:
        totals = inspect(read(adapter)).to_dict()["totals"]
    assert totals["base_params"] is None
    assert str(adapter / "adapter_model.safetensors") in paths
    assert not paths & {str(folder), str(folder / "model.safetensors")}
