"""GGUF files: written as llama.cpp's own package reads them, and read as it writes them."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import judge

from lora_tools.errors import CheckpointError, PackageError
from lora_tools.files.fields import CODES, Field, field_of, text_of
from lora_tools.files.gguf import layout, read_gguf
from lora_tools.files.header import Spec, spec_of
from lora_tools.files.opening import open_checkpoint
from lora_tools.files.writer import TensorWriter

gguf = judge("gguf")

RANGES = {
    "UINT8": st.integers(0, 2**8 - 1),
    "INT8": st.integers(-(2**7), 2**7 - 1),
    "UINT16": st.integers(0, 2**16 - 1),
    "INT16": st.integers(-(2**15), 2**15 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FLOAT32": st.floats(width=32, allow_nan=False),
    "FLOAT64": st.floats(allow_nan=False),
    "BOOL": st.booleans(),
    "STRING": st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(["FLOAT32 1.0", "STRING x", "ARRAY UINT8 [1]", ""]),
    ),
}


@st.composite
def fields(draw: st.DrawFn) -> Field:
    kind = draw(st.sampled_from(sorted(RANGES)))
    if draw(st.booleans()):
        return Field(kind, draw(RANGES[kind]))
    return Field(f"ARRAY {kind}", draw(st.lists(RANGES[kind], max_size=3)))


keys = st.text("abc_.", min_size=1, max_size=8).map("test.{}".format)
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def write(path, tensors, metadata):
    plan = layout({name: spec_of(tensor) for name, tensor in tensors.items()}, metadata)
    with TensorWriter(path, plan) as file:
        for name in reversed(tensors):
            file[name] = tensors[name]
    assert path.stat().st_size == plan.size
    return path


@given(fields())
def test_a_field_is_its_text_and_its_text_the_field(field):
    assert field_of(text_of(field)) == field


def test_every_type_of_the_package_has_a_code():
    known = {kind.name for kind in gguf.GGUFValueType} - {"STRING", "ARRAY"}
    assert known == CODES.keys()


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(keys, fields(), max_size=5),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(TYPES)), st.lists(st.integers(1, 4), min_size=1, max_size=3)
        ),
        max_size=4,
    ),
)
def test_the_package_reads_what_is_written(tmp_path_factory, header, shapes):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    tensors = {
        f"t{i}": torch.randn(shape).to(TYPES[kind]) for i, (kind, shape) in enumerate(shapes)
    }
    metadata = {name: text_of(field) for name, field in header.items()}
    write(path, tensors, metadata)
    reader = gguf.GGUFReader(path)
    read = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert read.keys() == header.keys()
    for name, field in header.items():
        assert read[name].contents() == field.value
        assert read[name].types[0].name == field.kinds[0]
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        mine = tensors[tensor.name]
        assert tensor.data_offset % 32 == 0
        assert list(tensor.shape) == list(reversed(mine.shape))
        assert tensor.data.tobytes() == mine.view(torch.uint8).numpy().tobytes()
    again = read_gguf(path)
    assert again.metadata == metadata
    assert list(again.specs) == list(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert write(path.with_name("y.gguf"), dict(again), again.metadata).read_bytes() == (
        path.read_bytes()
    )


def by_the_package(path, tensors, endianess=None):
    """Write a file with the package's own writer: numpy arrays, or arrays of bytes and a type."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess or gguf.GGUFEndian.LITTLE)
    writer.add_float32("adapter.lora.alpha", 8)
    writer.add_array("adapter.some.numbers", [1, 2, 3])
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS = gguf.GGMLQuantizationType


def test_what_the_package_writes_is_read(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    kinds = (KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0)
    tensors = {kind.name: (gguf.quants.quantize(x, kind), kind) for kind in kinds}
    file = open_checkpoint(by_the_package(tmp_path / "x.gguf", tensors))
    assert {name: spec.dtype for name, spec in file.specs.items()} == {
        "F32": "F32",
        "F16": "F16",
        "BF16": "BF16",
        "Q8_0": "F32",
    }
    assert {spec.shape for spec in file.specs.values()} == {(3, 64)}
    for kind in kinds:
        expected = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
        assert np.array_equal(file[kind.name].float().numpy(), expected)
        assert np.abs(expected - x).max() <= (0.02 if kind != KINDS.F32 else 0)
    assert file.metadata == {
        "general.architecture": "llama",
        "adapter.lora.alpha": "FLOAT32 8.0",
        "adapter.some.numbers": "ARRAY INT32 [1, 2, 3]",
    }
    assert file.notes == ("1 tensors are stored as Q8_0; they are read as F32.",)
    assert open_checkpoint(tmp_path).specs == file.specs  # the folder's only file


def test_other_quantised_types_are_refused_by_name(tmp_path):
    x = np.ones((2, 256), np.float32)
    tensors = {"w": (gguf.quants.quantize(x, KINDS.Q4_0), KINDS.Q4_0)}
    path = by_the_package(tmp_path / "x.gguf", tensors)
    with pytest.raises(CheckpointError, match=r"x\.gguf: tensors of type Q4_0: w") as caught:
        read_gguf(path)
    assert "--outtype" in caught.value.__notes__[0]


def test_files_for_big_endian_machines_are_refused(tmp_path):
    tensors = {"w": (np.ones((2, 3), np.float32), None)}
    path = by_the_package(tmp_path / "x.gguf", tensors, gguf.GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match="big-endian"):
        read_gguf(path)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    tensors = {"w": (np.ones((2, 3), np.float32), None), "v": (np.ones(5, np.float32), None)}
    data = by_the_package(tmp_path / "x.gguf", tensors).read_bytes()
    end = len(data) - 12  # the padding behind the last tensor may be missing
    for length in [*range(0, end, 7), end - 1]:
        short = tmp_path / "short.gguf"
        short.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"short\.gguf: damaged, or not a GGUF file"):
            read_gguf(short)


def test_another_alignment_is_kept(tmp_path):
    tensors = {"a": torch.ones(3), "b": torch.ones(5)}
    path = write(tmp_path / "x.gguf", tensors, {"general.alignment": "UINT32 64"})
    assert [t.data_offset % 64 for t in gguf.GGUFReader(path).tensors] == [0, 0]
    assert path.stat().st_size % 64 == 0


def test_types_that_gguf_lacks_are_refused():
    with pytest.raises(CheckpointError, match="elements of type U8: w"):
        layout({"w": Spec("U8", (2,))}, {})


def test_numbers_that_are_none_stay_so(tmp_path):
    path = write(
        tmp_path / "x.gguf", {"w": torch.ones(1)}, {"x": text_of(Field("FLOAT32", math.nan))}
    )
    assert math.isnan(gguf.GGUFReader(path).fields["x"].contents())


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
    x = np.ones((2, 32), np.float32)
    plain = by_the_package(tmp_path / "plain.gguf", {"w": (x, None)})
    packed = {"w": (gguf.quants.quantize(x, KINDS.Q8_0), KINDS.Q8_0)}
    packed = by_the_package(tmp_path / "packed.gguf", packed)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert np.array_equal(read_gguf(plain)["w"].numpy(), x)  # reading plain numbers needs none
    for act in (lambda: read_gguf(packed), lambda: layout({}, {})):
        with pytest.raises(PackageError, match="gguf, which is not installed") as caught:
            act()
        assert caught.value.__notes__ == ["Install it with: pip install 'lora-tools[gguf]'"]
