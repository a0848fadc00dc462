"""Scaled float8: every layout of scales, from any row to any other, beside dense float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_tools.base import Rows, base_of
from lora_tools.files.dtypes import torch_dtype
from lora_tools.model import Model, open_model

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
N, K = 11, 10
BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}}


def grid(scale: torch.Tensor) -> torch.Tensor:
    return scale.double().repeat_interleave(4, 0)[:N].repeat_interleave(3, 1)[:, :K]


LAYOUTS = {
    "cast alone": (None, None, {}),
    "one number": ("weight_scale", torch.tensor(0.3), {}),
    "ComfyUI's": ("scale_weight", torch.tensor([0.3]), {}),
    "rows": ("weight_scale", torch.rand(N, 1) + 0.5, {}),
    "rows in bfloat16": ("weight_scale", (torch.rand(N) + 0.5).bfloat16(), {}),
    "ragged blocks": ("weight_scale_inv", torch.rand(3, 4) + 0.5, BLOCKS),
    "blocks by exponents": ("weight_scale_inv", (torch.rand(3, 4) + 0.5).to(E8M0), BLOCKS),
}


def stored(tmp_path, name: str, kind: torch.dtype = E4M3) -> tuple[Model, torch.Tensor]:
    """Return a model of one weight and, from the definition, its numbers in float64."""
    leaf, scale, config = LAYOUTS[name]
    codes = torch.randn(N, K, generator=torch.Generator().manual_seed(1)).to(kind)
    state, wanted = {"q.weight": codes}, codes.double()
    if scale is not None:
        state[f"q.{leaf}"] = scale
        wanted = wanted * (grid(scale) if config else scale.double().reshape(-1, 1))
    save_file(state, tmp_path / "model.safetensors")
    model = open_model(tmp_path)
    return Model(model.path, model.tensors, config), wanted


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_rows_are_those_of_the_whole(tmp_path, name):
    model, wanted = stored(tmp_path, name)
    base = base_of(model, "")
    assert list(base) == ["q.weight"]
    weight = base["q.weight"]
    assert np.array_equal(weight.rows(0, N), wanted.numpy())
    with Rows(weight, K) as rows:  # one reader for all, in no order
        for start in reversed(range(N)):
            for stop in range(start, N + 1):
                assert np.array_equal(rows.wide(start, stop), wanted[start:stop].numpy())
                single = np.empty((stop - start) * K, np.float32)
                rows.decode(rows.raw(start, stop), start, stop, single)
                assert np.array_equal(single, wanted[start:stop].float().reshape(-1).numpy())


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_encoding_what_was_decoded_gives_the_same_bytes(tmp_path, name, kind):
    model, _ = stored(tmp_path, name, torch_dtype(kind))
    codec = base_of(model, "")["q.weight"].codec
    start, stop = 5 * K, 9 * K  # from within a block of rows into the last
    parts = [
        model.tensors.bytes_of(part.key, *span)
        for part, span in zip(codec.parts, codec.spans(start, stop), strict=True)
    ]
    numbers = np.empty(stop - start)
    codec.decode(parts, start, stop, numbers)
    assert np.array_equal(codec.encode(numbers, parts, start, stop), parts[0])


def test_encoding_rounds_to_the_nearest_and_never_to_infinity(tmp_path):
    model, _ = stored(tmp_path, "cast alone")
    codec = base_of(model, "")["q.weight"].codec
    table = torch.arange(127, dtype=torch.uint8).view(E4M3).double().numpy()
    middles = [(low + high) / 2 for low, high in pairwise(table)]
    for i, middle in enumerate(middles):  # a tie goes to the even code, what is beside it does not
        numbers = np.array([middle * (1 - 2**-40), middle, middle * (1 + 2**-40)])
        found = codec.encode(numbers, [], 0, 3)
        assert found.tolist() == [i, i + i % 2, i + 1]
    assert codec.encode(np.array([1e30, -1e30]), [], 0, 2).tolist() == [126, 254]
