import json
import struct

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES, load, save

from lora_tools.errors import CheckpointError
from lora_tools.files.dtypes import DTYPES, FLOATS, Dtype, code_of, torch_dtype


@pytest.mark.parametrize("code", _TYPES)
def test_codes_mean_what_they_mean_in_safetensors(code):
    assert torch_dtype(code) == _TYPES[code]
    assert code_of(_TYPES[code]) == code
    assert DTYPES[code].bits == 8 * _TYPES[code].itemsize


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.torch], ids=lambda d: d.code)
def test_safetensors_writes_the_same_code(dtype):
    data = save({"x": torch.zeros(8, dtype=torch.uint8).view(getattr(torch, dtype.torch))})
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["x"]["dtype"] == dtype.code


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.code)
def test_widths_are_those_that_safetensors_checks(dtype, tmp_path):
    def file(nbytes: int) -> str:
        entry = {"dtype": dtype.code, "shape": [8], "data_offsets": [0, nbytes]}
        text = json.dumps({"x": entry}).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(nbytes))
        return str(path)

    with safe_open(file(dtype.bits), "pt") as opened:
        assert opened.get_slice("x").get_dtype() == dtype.code
    with pytest.raises(SafetensorError):
        safe_open(file(dtype.bits + 1), "pt")


def test_safetensors_knows_no_type_that_is_missing_here():
    entry = {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"x": entry}).encode()
    with pytest.raises(SafetensorError) as caught:
        load(struct.pack("<Q", len(text)) + text + bytes(4))
    listed = str(caught.value).partition("expected one of")[2].partition(" at line")[0]
    assert {code.strip(" `") for code in listed.split(",")} == set(DTYPES)


@pytest.mark.parametrize("code", [d.code for d in DTYPES.values() if not d.torch])
def test_a_type_that_torch_lacks_is_refused_by_name(code):
    with pytest.raises(CheckpointError, match=f"has no dtype {code}\\b") as caught:
        torch_dtype(code)
    assert caught.value.__notes__


def test_a_type_that_an_older_torch_lacks_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(DTYPES, "F3", Dtype("F3", 3, "float3_of_tomorrow"))
    with pytest.raises(CheckpointError, match=r"has no dtype F3\b"):
        torch_dtype("F3")


@pytest.mark.parametrize("dtype", [torch.complex128, torch.quint8, torch.complex32], ids=str)
def test_a_type_that_files_lack_is_refused_by_name(dtype):
    with pytest.raises(CheckpointError, match=f"cannot hold elements of type {dtype}$"):
        code_of(dtype)


def test_factors_may_be_floats_of_16_bits_and_more():
    wide = {d for d in _TYPES.values() if d.is_floating_point and d.itemsize > 1}
    assert {torch_dtype(code) for code in FLOATS} == wide
