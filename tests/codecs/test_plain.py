"""Plain numbers: each type of float is read exactly and written as it was."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_tools.base import base_of
from lora_tools.files.dtypes import torch_dtype
from lora_tools.model import open_model


@pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
def test_numbers_are_read_exactly_and_written_as_they_were(tmp_path, code):
    tensor = (torch.randn(7, 5) * 2.0 ** torch.arange(-20, 15).reshape(7, 5)).to(torch_dtype(code))
    save_file({"q.weight": tensor}, tmp_path / "model.safetensors")
    model = open_model(tmp_path)
    weight = base_of(model, "")["q.weight"]
    assert weight.plain
    assert weight.is_numbers
    assert np.array_equal(weight.rows(2, 6), tensor[2:6].double().numpy())
    (span,) = weight.codec.spans(10, 30)
    raw = model.tensors.bytes_of("q.weight", *span)
    wide = weight.rows(2, 6).reshape(-1)
    assert np.array_equal(weight.codec.encode(wide, [raw], 10, 30), raw)


def test_integers_are_carried_and_are_no_numbers(tmp_path):
    save_file({"position_ids": torch.arange(4)}, tmp_path / "model.safetensors")
    weight = base_of(open_model(tmp_path), "")["position_ids"]
    assert weight.whole
    assert not weight.is_numbers
