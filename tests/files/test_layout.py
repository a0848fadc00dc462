import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from lora_tools.files.dtypes import DTYPES, torch_dtype
from lora_tools.files.header import Spec, parse_header, spec_of
from lora_tools.files.layout import layout
from lora_tools.files.writer import TensorWriter

TYPES = [torch_dtype(code) for code, dtype in DTYPES.items() if dtype.torch]


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    plan = layout({name: spec_of(tensor) for name, tensor in tensors.items()}, metadata)
    with TensorWriter(path, plan) as file:
        for name in random.sample(list(tensors), len(tensors)):
            file[name] = tensors[name]
    return path.read_bytes()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(TYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    if dtype == torch.float4_e2m1fn_x2 and not shape:
        shape = [1]  # torch counts F4 in pairs along the last dimension, so there must be one
    width = dtype.itemsize
    count = torch.Size(shape).numel() * width
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    raw = torch.tensor(list(data), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(names, tensors(), max_size=6),
    st.one_of(
        st.none(),
        st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=1),
    ),
)
@example({}, None)
@example({"ключ": torch.ones(2), 'q"\\/\n\t\x00\x1f\x7f': torch.ones(3)}, {"名": "значение\u2028"})
@example({"a": torch.ones(()), "b": torch.ones(0, 3), "": torch.ones(1)}, None)
def test_bytes_are_those_of_save_file(tmp_path, values, metadata):
    assume(values or metadata != {})  # safetensors 0.8 writes broken JSON for nothing at all
    expected, path = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(values, expected, metadata=metadata)
    path.unlink(missing_ok=True)
    assert written(path, values, metadata) == expected.read_bytes()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_torch_can_save_is_written_alike(dtype, tmp_path):
    raw = torch.randint(0, 2, (4, 16), dtype=torch.uint8)
    values = {"x": raw.view(dtype), "y": raw[1:].clone().view(dtype), "z": raw[:0].view(dtype)}
    assert written(tmp_path / "x", values, {"format": "pt"}) == save(values, {"format": "pt"})


def test_all_types_in_one_file_are_ordered_alike(tmp_path):
    values = {str(dtype): torch.ones(8, dtype=torch.uint8).view(dtype) for dtype in TYPES}
    assert written(tmp_path / "x", values, None) == save(values)


def test_several_metadata_entries_keep_their_order():
    metadata = {"z": "1", "a": "2", "m": "3"}
    plan = layout({"x": Spec("F32", (1,))}, metadata)
    assert list(json.loads(plan.header[8:])["__metadata__"].items()) == list(metadata.items())


def test_a_layout_reads_as_the_header_that_it_writes():
    specs = {"b": Spec("F16", (3, 5)), "a": Spec("I64", ()), "c": Spec("F6_E2M3", (4,))}
    plan = layout(specs, {"k": "v"})
    header = parse_header(plan.header[8:], plan.size, Path("x"))
    assert header.slots == plan.slots
    assert header.metadata == {"k": "v"}


def test_size_is_the_size_of_the_file(tmp_path):
    values = {"a": torch.ones(3), "b": torch.ones(0)}
    plan = layout({name: spec_of(tensor) for name, tensor in values.items()})
    assert plan.size == len(save(values))
    assert layout({}).size == len(save({}))
