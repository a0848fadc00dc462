"""MLX-LM: what mlx-lm itself loads of what is written here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import real
from judges import judge
from reference import deltas
from safetensors.torch import save_file

from lora_tools.adapter import read, write
from lora_tools.errors import CheckpointError, FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import format_named
from lora_tools.formats.sites import Experts
from lora_tools.verbs.convert import convert

MLX = format_named("mlx")
TARGETS = {
    "model.layers.0.self_attn.q_proj": (16, 16, 4),
    "model.layers.1.self_attn.q_proj": (16, 16, 4),
    "model.layers.1.mlp.down_proj": (16, 32, 2),
}


@pytest.fixture
def peft(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {}
    for path, (out, inp, rank) in TARGETS.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, inp)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"down_proj": 10},
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def to_mlx(folder, out):
    plan = convert(read(folder), MLX)
    out.mkdir()
    updates = plan.outcome().watch(plan)
    write(out, plan.manifest, updates, like=plan.source, format=MLX)
    return out


def test_mlx_lm_loads_it_and_computes_the_same_update(peft, tmp_path):
    judge("mlx.core")
    llama = judge("mlx_lm.models.llama")
    load_adapters = judge("mlx_lm.tuner.utils").load_adapters
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 32}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    arguments = llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes, **shape)
    model = load_adapters(llama.Model(arguments), str(to_mlx(peft, tmp_path / "mlx")))
    layers = dict(model.named_modules())
    for path in TARGETS:
        layer = layers[path]
        seen = layer.scale * np.array(layer.lora_a) @ np.array(layer.lora_b)
        wanted = deltas(peft)[f"base_model.model.{path}"]
        torch.testing.assert_close(torch.tensor(seen.T), wanted.float(), rtol=1e-5, atol=1e-5)


def test_a_real_adapter_goes_to_peft_and_back_bit_for_bit(tmp_path):
    source = real("mlx-qwen05b")
    adapter = read(source)
    assert {module.scale for module in adapter.manifest.modules} == {10.0}
    plan = convert(adapter, format_named("peft"))
    (tmp_path / "peft").mkdir()
    outcome = plan.outcome()
    write(tmp_path / "peft", plan.manifest, outcome.watch(plan), like=adapter, format=plan.format)
    assert outcome.error == 0
    again = read(to_mlx(tmp_path / "peft", tmp_path / "again"))
    assert again.tensors.specs == adapter.tensors.specs
    for key in adapter.tensors:
        assert torch.equal(again.tensors[key], adapter.tensors[key])


def test_archives_of_numpy_are_read(tmp_path):
    a, b = np.random.randn(6, 2).astype("f4"), np.random.randn(2, 3).astype("f4")
    np.savez(tmp_path / "adapters.npz", **{"layers.0.q.lora_a": a, "layers.0.q.lora_b": b})
    with pytest.raises(FormatError, match="no scale"):
        read(tmp_path / "adapters.npz")
    config = {"fine_tune_type": "lora", "lora_parameters": {"scale": 20.0, "rank": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    update = read(tmp_path)["layers.0.q"]
    assert np.allclose(update.dense(), 20 * (a @ b).T)
    np.savez_compressed(tmp_path / "adapters.npz", a=a)
    with pytest.raises(CheckpointError, match=r"a\.npy is compressed"):
        read(tmp_path)
    (tmp_path / "adapters.npz").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="not an archive"):
        read(tmp_path)


CONFIG = {"fine_tune_type": "lora", "lora_parameters": {"scale": 2.0}}


def test_layers_of_experts_are_stacks():
    specs = {"h.switch_mlp.up.lora_a": Spec("F32", (3, 2, 5))}
    specs["h.switch_mlp.up.lora_b"] = Spec("F32", (3, 4, 2))
    manifest = MLX.read(Contents(specs, CONFIG, {}, {}))
    (module,) = manifest.modules
    assert (module.name, module.site) == ("h.switch_mlp.up.weight", Experts("weight", 3))
    assert MLX.write(manifest).specs == specs
    tensors = {key: np.random.randn(*spec.shape) for key, spec in specs.items()}
    a, b = tensors.values()
    assert np.allclose(MLX.update(module, tensors).dense("float64"), 2 * b @ a)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"fine_tune_type": "full"}, UnsupportedError, "fine_tune_type is full"),
        ({"fine_tune_type": "lora"}, FormatError, "no scale"),
        ({"lora_parameters": {"alpha": 16}}, FormatError, "no scale"),
        (
            {"lora_parameters": {"scale": float("nan")}},
            FormatError,
            "scale is nan, not a number",
        ),
    ],
)
def test_what_has_no_scale_is_refused(config, kind, message):
    specs = {"q.lora_a": Spec("F32", (2, 1)), "q.lora_b": Spec("F32", (1, 2))}
    with pytest.raises(kind, match=message):
        MLX.read(Contents(specs, config, {}, {}))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((2, 1), (2, 2), "are no pair of factors"),
        ((2, 1), None, "has no lora_b"),
        ((0, 1), (1, 2), "empty factors"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(a, b, message):
    shapes = {"q.lora_a": a, "q.lora_b": b}
    specs = {key: Spec("F32", shape) for key, shape in shapes.items() if shape}
    with pytest.raises(FormatError, match=message):
        MLX.read(Contents(specs, CONFIG, {}, {}))


def test_a_layer_that_mlx_takes_for_a_table_is_refused():
    specs = {"q.lora_a": Spec("F32", (2, 1)), "q.lora_b": Spec("F32", (1, 2))}
    manifest = MLX.read(Contents(specs, CONFIG, {}, {}))
    named = replace(manifest.modules[0], name="model.embed_tokens")
    with pytest.raises(UnsupportedError, match=r"other layers in the place of model\.embed_tokens"):
        MLX.write(replace(manifest, modules=(named,)))
