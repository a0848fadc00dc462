"""Encodings of weights: what is not read is refused by name, by every verb that reads a base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_tools.adapter import read
from lora_tools.base import base_of
from lora_tools.errors import LoraToolsError, UnsupportedError
from lora_tools.executors import Serial
from lora_tools.merging import MergeOptions, WeightedAdapter, plan
from lora_tools.model import open_model
from lora_tools.verbs.extract.options import ExtractOptions
from lora_tools.verbs.extract.plan import make_plan
from lora_tools.verbs.inspect.comparison import compare

N, K = 256, 256
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
U8, I8, I32 = torch.uint8, torch.int8, torch.int32


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


M = "model.layers.0.mlp.down_proj"
FP8 = {f"{M}.weight": zeros(N, K, dtype=E4M3)}
PACKED = {f"{M}.weight": zeros(N, K // 2, dtype=U8)}
NVFP4 = PACKED | {f"{M}.weight_scale": zeros(N, K // 16, dtype=E4M3)}


def config(method: str, **more: object) -> dict[str, object]:
    return {"quantization_config": {"quant_method": method, **more}}


UE8M0 = config("fp8", weight_block_size=[1, 32], scale_fmt="ue8m0")

# From CODECS: tensors as the tools store them, the configuration, and what each is called.
REFUSED: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str]] = {
    "bitsandbytes nf4": (
        {
            f"{M}.weight": zeros(N * K // 2, 1, dtype=U8),
            f"{M}.weight.absmax": zeros(N * K // 64),
            f"{M}.weight.quant_map": zeros(16),
            f"{M}.weight.quant_state.bitsandbytes__nf4": zeros(90, dtype=U8),
        },
        {},
        "bitsandbytes",
    ),
    "bitsandbytes nf4 in bfloat16": (
        {
            f"{M}.weight": zeros(N * K // 4, 1, dtype=torch.bfloat16),
            f"{M}.weight.quant_state.bitsandbytes__nf4": zeros(90, dtype=U8),
        },
        {},
        "bitsandbytes",
    ),
    "bitsandbytes int8": (
        {f"{M}.weight": zeros(N, K, dtype=I8), f"{M}.SCB": zeros(N)},
        {},
        "bitsandbytes",
    ),
    "compressed-tensors int4": (
        {
            f"{M}.weight_packed": zeros(N, K // 8, dtype=I32),
            f"{M}.weight_scale": zeros(N, K // 32),
            f"{M}.weight_shape": zeros(2, dtype=torch.int64),
        },
        config("compressed-tensors"),
        "compressed-tensors, as packed integers",
    ),
    "compressed-tensors nvfp4": (
        {
            f"{M}.weight_packed": zeros(N, K // 2, dtype=U8),
            f"{M}.weight_scale": zeros(N, K // 16, dtype=E4M3),
            f"{M}.weight_global_scale": zeros(1),
        },
        config("compressed-tensors"),
        "compressed-tensors NVFP4",
    ),
    "compressed-tensors mxfp4": (
        {
            f"{M}.weight_packed": zeros(N, K // 2, dtype=U8),
            f"{M}.weight_scale": zeros(N, K // 32, dtype=U8),
        },
        config("compressed-tensors"),
        "compressed-tensors MXFP4",
    ),
    "compressed-tensors int8": (
        {f"{M}.weight": zeros(N, K, dtype=I8), f"{M}.weight_scale": zeros(N, 1)},
        config("compressed-tensors"),
        "int8 with a scale, by compressed-tensors or ComfyUI",
    ),
    "ModelOpt nvfp4": (NVFP4 | {f"{M}.weight_scale_2": zeros()}, {}, "NVFP4, by ModelOpt"),
    "ModelOpt awq": (
        NVFP4 | {f"{M}.weight_scale_2": zeros(), f"{M}.pre_quant_scale": zeros(K)},
        config("modelopt"),
        "NVFP4, by ModelOpt",
    ),
    "ModelOpt fp8 of rotated inputs": (
        FP8 | {f"{M}.weight_scale": zeros(), f"{M}.pre_quant_scale": zeros(K)},
        config("modelopt"),
        "an encoding that is not known",
    ),
    "ComfyUI nvfp4": (NVFP4 | {f"{M}.comfy_quant": zeros(20, dtype=U8)}, {}, "ComfyUI's NVFP4"),
    "ComfyUI mxfp8": (
        FP8
        | {
            f"{M}.comfy_quant": zeros(20, dtype=U8),
            f"{M}.weight_scale": zeros(N, K // 32, dtype=E8M0),
        },
        {},
        "ComfyUI's MXFP8",
    ),
    "Quark mxfp4": (
        PACKED | {f"{M}.weight_scale": zeros(N, K // 32, dtype=U8)},
        {},
        "MXFP4, by Quark or axolotl",
    ),
    "gpt-oss": (
        {
            "model.layers.0.mlp.experts.down_proj_blocks": zeros(2, N, K // 32, 16, dtype=U8),
            "model.layers.0.mlp.experts.down_proj_scales": zeros(2, N, K // 32, dtype=U8),
        },
        config("mxfp4"),
        "MXFP4",
    ),
    "mxfp8 by transformers": (
        FP8 | {f"{M}.weight_scale_inv": zeros(N, K // 32, dtype=U8)},
        UE8M0,
        "MXFP8",
    ),
    "mxfp8 by compressed-tensors": (
        FP8 | {f"{M}.weight_scale": zeros(N, K // 32, dtype=U8)},
        config("compressed-tensors"),
        "MXFP8",
    ),
    "DeepSeek-V4": (
        FP8 | {f"{M}.scale": zeros(2, 2, dtype=E8M0)},
        config("fp8", weight_block_size=[128, 128]),
        "float8 whose scale is DeepSeek-V4's",
    ),
    "DeepSeek-V4's experts": (
        {
            f"{M}.weight": zeros(N, K // 2, dtype=I8),
            f"{M}.scale": zeros(N, K // 32, dtype=E8M0),
        },
        {},
        "DeepSeek-V4's MXFP4",
    ),
    "Mistral": (FP8 | {f"{M}.qscale_weight": zeros()}, {}, "float8 with a qscale_weight"),
    "an unknown scale of float8": (
        FP8 | {f"{M}.weight_rescaler": zeros()},
        {},
        "an encoding that is not known, .*down_proj.weight being F8_E4M3 beside: .*rescaler",
    ),
    "an unknown scale of bytes": (
        PACKED | {f"{M}.zeros": zeros(N)},
        {},
        "an encoding that is not known, .*down_proj.weight being U8 beside: .*zeros",
    ),
    "an unknown scale of a parameter": (
        {"experts.w1": zeros(2, N, K, dtype=E4M3), "experts.w1_block_scales": zeros(2, 4)},
        {},
        "an encoding that is not known, experts.w1 being F8_E4M3",
    ),
    "GPTQ": (
        {
            f"{M}.qweight": zeros(K // 8, N, dtype=I32),
            f"{M}.qzeros": zeros(2, N // 8, dtype=I32),
            f"{M}.scales": zeros(2, N, dtype=torch.float16),
            f"{M}.g_idx": zeros(K, dtype=I32),
        },
        {},
        "GPTQ",
    ),
    "GPTQ without an order": (
        {
            f"{M}.qweight": zeros(K // 8, N, dtype=I32),
            f"{M}.qzeros": zeros(2, N // 8, dtype=I32),
            f"{M}.scales": zeros(2, N, dtype=torch.float16),
        },
        {},
        "GPTQ:",
    ),
    "AWQ": (
        {
            f"{M}.qweight": zeros(K, N // 8, dtype=I32),
            f"{M}.qzeros": zeros(2, N // 8, dtype=I32),
            f"{M}.scales": zeros(2, N, dtype=torch.float16),
        },
        {},
        "AWQ:",
    ),
    "MLX": (
        {
            f"{M}.weight": zeros(N, K // 8, dtype=torch.uint32),
            f"{M}.scales": zeros(N, K // 64),
            f"{M}.biases": zeros(N, K // 64),
        },
        {"quantization": {"group_size": 64, "bits": 4}},
        "MLX:",
    ),
    "MLX mxfp4": (
        {
            f"{M}.weight": zeros(N, K // 8, dtype=torch.uint32),
            f"{M}.scales": zeros(N, K // 32, dtype=U8),
        },
        {},
        "MLX, in mxfp4",
    ),
    "HQQ": (
        {f"{M}.W_q": zeros(N, K, dtype=U8), f"{M}.scale": zeros(1), f"{M}.zero": zeros(1)},
        {},
        "HQQ",
    ),
    "torchao": (
        {f"{M}._weight_qdata": zeros(N, K, dtype=E4M3), f"{M}._weight_scale": zeros(N, 1)},
        {},
        "torchao",
    ),
    "EETQ": (
        {f"{M}.weight": zeros(K, N, dtype=I8), f"{M}.weight_scales": zeros(N)},
        {},
        "EETQ",
    ),
    "quanto": (
        {f"{M}.weight._data": zeros(N, K, dtype=I8), f"{M}.weight._scale": zeros(N, 1)},
        {},
        "quanto",
    ),
    "a method that nobody knows": (
        {f"{M}.weight": zeros(N, K)},
        config("nope"),
        "the unknown method 'nope', as its config.json says",
    ),
    "a method without a name": (
        {f"{M}.weight": zeros(N, K)},
        {"quantization_config": {"x": 1}},
        "an unknown method",
    ),
    "a method of a part": (
        {f"{M}.weight": zeros(N, K)},
        {"text_config": config("gptq")},
        "GPTQ, as its config.json says",
    ),
    "float8 that is not there": (
        {f"{M}.weight": zeros(N, K)},
        config("fp8"),
        "fp8 and without any tensor of float8",
    ),
    "MLX that is only said": (
        {f"{M}.weight": zeros(N, K)},
        {"quantization": {"group_size": 64, "bits": 4}},
        "MLX, as its config.json says",
    ),
}

# What fits together in no known way: the message says which shapes.
MISFITS: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str]] = {
    "blocks of no size": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2)},
        {},
        "no weight_block_size in config.json",
    ),
    "blocks of another size": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2)},
        config("fp8", weight_block_size=[64, 64]),
        r"weight_scale_inv of shape \[2, 2\] .* blocks of \[64, 64\]",
    ),
    "blocks of text": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2)},
        config("fp8", weight_block_size=["a", "b"]),
        r"config.json: blocks of \['a', 'b'\]",
    ),
    "blocks of nothing": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2)},
        config("fp8", weight_block_size=[0, 128]),
        "config.json: blocks of",
    ),
    "a scale for each of 64 columns": (
        FP8 | {f"{M}.scale_weight": zeros(N, K // 64, 1)},
        {},
        "scale_weight of shape",
    ),
    "scales of a stack": (
        {f"{M}.weight": zeros(2, 8, 8, dtype=E4M3), f"{M}.weight_scale": zeros(2, 1, 1)},
        {},
        "weight_scale of shape",
    ),
    "two scales": (
        FP8 | {f"{M}.weight_scale": zeros(), f"{M}.weight_scale_inv": zeros()},
        {},
        "is scaled by",
    ),
    "a scale of integers": (
        FP8 | {f"{M}.weight_scale": zeros(1, dtype=I32)},
        {},
        r"weight_scale \(I32\)",
    ),
}

PLAIN = {f"{M}.weight": torch.eye(N, K)}
READ: dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]] = {
    "plain": (PLAIN, {}),
    "float8 that was only cast": (FP8, {}),
    "ComfyUI's note": (
        FP8 | {f"{M}.scale_weight": zeros(), "scaled_fp8": zeros(2, dtype=E4M3)},
        {},
    ),
    "ComfyUI's float8": (
        FP8 | {f"{M}.weight_scale": zeros(), f"{M}.comfy_quant": zeros(20, dtype=U8)},
        {},
    ),
    "blocks": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2)},
        config("fp8", weight_block_size=[128, 128]),
    ),
    "blocks by exponents": (
        FP8 | {f"{M}.weight_scale_inv": zeros(2, 2, dtype=E8M0)},
        config("fp8", weight_block_size=[128, 128]),
    ),
    "blocks of compressed-tensors": (
        FP8 | {f"{M}.weight_scale": zeros(2, 4)},
        config(
            "compressed-tensors",
            config_groups={"group_0": {"weights": {"block_structure": [128, 64]}}},
        ),
    ),
    "rows, and a scale of activations": (
        FP8 | {f"{M}.weight_scale": zeros(N, 1), f"{M}.input_scale": zeros()},
        config("compressed-tensors"),
    ),
    "a cache that is quantised": (
        PLAIN | {"model.layers.0.self_attn.k_scale": zeros()},
        config("compressed-tensors"),
    ),
    "a scale that is a parameter": (PLAIN | {f"{M}.logit_scale": zeros()}, {}),
    "integers that are no weights": (PLAIN | {"position_ids": zeros(1, 4, dtype=torch.int64)}, {}),
    "quantisation of something else": (PLAIN, {"quantization": "none"}),
}


def model(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def strong(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {
            f"base_model.model.{M}.lora_A.weight": torch.ones(1, K),
            f"base_model.model.{M}.lora_B.weight": torch.ones(N, 1),
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]})
    )
    return WeightedAdapter(read(folder))


def verbs(path: Path, strong: WeightedAdapter):
    """Yield the ways in which a base is read under adapters; verify plans as merge does."""
    yield lambda: plan(open_model(path), [strong], MergeOptions(dtype="BF16"))
    yield lambda: compare(strong.adapter, open_model(path), Serial())  # inspect --base


@pytest.mark.parametrize("name", REFUSED)
def test_encodings_that_are_not_read_are_refused_by_name(name, tmp_path, strong):
    tensors, settings, stated = REFUSED[name]
    path = model(tmp_path / "base", tensors, settings)
    plain = model(tmp_path / "plain", PLAIN, {})
    for act in verbs(path, strong):
        with pytest.raises(UnsupportedError, match=f"^{path}: quantised with {stated}") as caught:
            act()
        assert "quantised from" in caught.value.__notes__[0]
    for pair in ((path, plain), (plain, path)):
        with pytest.raises(UnsupportedError, match=f"^{path}: quantised with {stated}"):
            make_plan(*map(open_model, pair), ExtractOptions())


@pytest.mark.parametrize("name", MISFITS)
def test_scales_that_do_not_fit_are_refused_with_their_shapes(name, tmp_path, strong):
    tensors, settings, stated = MISFITS[name]
    path = model(tmp_path / "base", tensors, settings)
    plain = model(tmp_path / "plain", PLAIN, {})
    for act in verbs(path, strong):
        with pytest.raises(UnsupportedError, match=stated):
            act()
    with pytest.raises(UnsupportedError, match=stated):
        make_plan(open_model(plain), open_model(path), ExtractOptions())


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_not_refused(name, tmp_path, strong):
    tensors, settings = READ[name]
    path = model(tmp_path / "base", tensors, settings)
    base_of(open_model(path), "nothing")
    assert (
        plan(open_model(path), [strong], MergeOptions(dtype="BF16")).entries.keys()
        <= tensors.keys()
    )


def test_weights_of_integers_are_refused_with_a_remedy_that_helps(tmp_path, strong):
    path = model(tmp_path / "base", {f"{M}.weight": zeros(N, K, dtype=I8)}, {})
    with pytest.raises(LoraToolsError, match="not of a type that weights are added to") as caught:
        plan(open_model(path), [strong], MergeOptions(dtype="BF16"))
    assert "--dtype" not in caught.value.__notes__[0]


def test_weights_are_sorted_into_the_order_of_their_files(tmp_path):
    names = ["b", "a", "c"]
    weights = {}
    for number, name in enumerate(names):
        weights[f"{name}.weight"] = f"{number}.safetensors"
        save_file({f"{name}.weight": torch.ones(2)}, tmp_path / f"{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(sorted(weights.items()))}))
    base = base_of(open_model(tmp_path), "")
    assert sorted(base, key=lambda name: base[name].position) == list(weights)
    assert [base[name].files for name in weights] == [{tmp_path / f} for f in weights.values()]


def test_a_pickle_of_scaled_weights_is_read_like_a_file_of_them(tmp_path):
    state = {"q.weight": torch.randn(4, 6).to(E4M3), "q.weight_scale": torch.rand(4, 1)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    weight = base_of(open_model(tmp_path), "")["q.weight"]
    wanted = state["q.weight"].double() * state["q.weight_scale"].double()
    assert torch.equal(torch.from_numpy(weight.rows(1, 3)), wanted[1:3])
    weight.expect()
    assert weight.position == ("", 0)
