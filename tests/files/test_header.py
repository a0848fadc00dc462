import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from lora_tools.errors import CheckpointError
from lora_tools.files.header import Spec, read_header, spec_of
from lora_tools.files.opening import open_checkpoint


def write(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file by hand, whatever its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, stop: int, shape: object = None, dtype: object = "F32") -> dict:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_a_header_is_read_as_safetensors_wrote_it(tmp_path):
    tensors = {"b": torch.ones(2, 3), "a": torch.ones(5, dtype=torch.float16), "c": torch.ones(())}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: slot.spec for name, slot in header.slots.items()} == {
        "a": Spec("F16", (5,)),
        "b": Spec("F32", (2, 3)),
        "c": Spec("F32", ()),
    }
    data = path.read_bytes()
    for name, slot in header.slots.items():
        assert data[slot.start : slot.stop] == tensors[name].numpy().tobytes()


def test_slots_are_in_file_order(tmp_path):
    path = write(tmp_path / "x", {"a": entry(8, 12), "b": entry(0, 8)}, bytes(12))
    assert list(read_header(path).slots) == ["b", "a"]


def test_metadata_may_be_null(tmp_path):
    path = write(tmp_path / "x", {"__metadata__": None, "a": entry(0, 4)}, bytes(4))
    assert read_header(path).metadata == {}


TWICE = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)

DAMAGE = {
    "truncated data": ({"a": entry(0, 8)}, bytes(7), "truncated: a ends at byte"),
    "trailing bytes": ({"a": entry(0, 8)}, bytes(11), "3 bytes after the last tensor"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "b overlaps a"),
    "same place": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlaps"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "4 bytes between a and b"),
    "gap at the start": ({"a": entry(4, 8)}, bytes(8), "4 bytes between the header and a"),
    "beyond the file": ({"a": entry(0, 2**40)}, bytes(8), "truncated: a ends"),
    "negative offset": ({"a": entry(-4, 0)}, b"", "a has the shape"),
    "backwards": ({"a": entry(8, 4, [1])}, bytes(8), "its offsets give it -4"),
    "offset not a number": (
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
        bytes(4),
        "a has the shape",
    ),
    "offset a fraction": ({"a": entry(0, 4.0, [1])}, bytes(4), "a has the shape"),
    "offset true": ({"a": entry(0, True, [1], "U8")}, bytes(1), "a has the shape"),
    "three offsets": (
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
        bytes(8),
        "entry of a is malformed",
    ),
    "too few bytes": ({"a": entry(0, 8, [3])}, bytes(8), "needs 12 bytes, but its offsets give it"),
    "too many bytes": ({"a": entry(0, 8, [1])}, bytes(8), "needs 4 bytes, but its offsets give it"),
    "negative size": ({"a": entry(0, 4, [-1, -1])}, bytes(4), "a has the shape [-1, -1]"),
    "shape a text": ({"a": entry(0, 4, "1")}, bytes(4), "a has the shape"),
    "shape an object": ({"a": entry(0, 4, {})}, bytes(4), "a has the shape"),
    "shape null": (
        {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}},
        bytes(4),
        "entry of a is malformed",
    ),
    "shape beyond counting": ({"a": entry(0, 0, [2**63, 0])}, b"", "a has the shape"),
    "product beyond counting": (
        {"a": entry(0, 0, [2**40, 2**40, 0])},
        b"",
        "a has the impossible shape",
    ),
    "more dimensions than arrays have": (
        {"a": entry(0, 4, [1] * 65)},
        bytes(4),
        "a has the impossible shape",
    ),
    "half a byte": ({"a": entry(0, 1, [3], "F4")}, bytes(1), "does not fill its last byte"),
    "unknown type": ({"a": entry(0, 4, [1], "F33")}, bytes(4), "unknown dtype 'F33'"),
    "type not a name": ({"a": entry(0, 4, [1], ["F32"])}, bytes(4), "unknown dtype"),
    "no type": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), "entry of a is malformed"),
    "entry a list": ({"a": []}, b"", "entry of a is malformed"),
    "name twice": (TWICE, bytes(4), "names occur twice in the header: a"),
    "field twice": (
        b'{"a":{"dtype":"F16","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "names occur twice in the header: dtype",
    ),
    "metadata twice": (b'{"__metadata__":{"k":"1","k":"2"}}', b"", "twice in the header: k"),
    "metadata not text": ({"__metadata__": {"k": 1}}, b"", "__metadata__ holds values"),
    "metadata of half a character": (
        rb'{"__metadata__":{"k":"\ud800"}}',
        b"",
        "__metadata__ holds half a surrogate pair",
    ),
    "metadata a list": ({"__metadata__": [1]}, b"", "__metadata__ is not a JSON object"),
    "not an object": ([], b"", "the header is not a JSON object"),
    "a number": (b"7", b"", "the header is not"),
    "not JSON": (b"{not json", b"", "the header is not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "the header is not valid JSON"),
    "half a character": (rb'{"\ud800":{}}', b"", "the header is not valid JSON"),
    "nested without end": (b"[" * 100_000, b"", "the header is not valid JSON"),
    "empty header": (b"", b"", "the header is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_that_names_file_and_fault(damage, tmp_path):
    header, data, fault = DAMAGE[damage]
    path = write(tmp_path / "damaged.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


NOT_SAFETENSORS = {
    "empty": (b"", "0 bytes are too few"),
    "short": (b"1234567", "7 bytes are too few"),
    "header cut": (struct.pack("<Q", 100) + b"{}", "truncated: a header of 100 bytes in a file"),
    "length beyond the file": (struct.pack("<Q", 9) + bytes(8), "truncated: a header of 9 bytes"),
    "length beyond all": (b"\xff" * 64, "not a safetensors file (its header would be"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12\n",
        "a Git LFS pointer",
    ),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(64), "a PyTorch pickle or zip"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(64), "a PyTorch pickle or zip"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
    "HTML": (b"<!DOCTYPE html><html>", "not a safetensors file"),
}


@pytest.mark.parametrize("kind", NOT_SAFETENSORS)
def test_other_files_are_recognised(kind, tmp_path):
    content, fault = NOT_SAFETENSORS[kind]
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


@pytest.mark.parametrize("kind", ["LFS pointer", "zip", "header cut"])
def test_what_to_do_is_a_note(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(NOT_SAFETENSORS[kind][0])
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.__notes__


def test_an_unknown_type_lists_the_known_ones(tmp_path):
    path = write(tmp_path / "x", {"a": entry(0, 4, [1], "F33")}, bytes(4))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert "BF16" in caught.value.__notes__[0]


VALID = save(
    {
        "layer.b": torch.arange(6.0).reshape(2, 3),
        "layer.a": torch.arange(4, dtype=torch.int16),
        "flag": torch.tensor([True]),
    },
    metadata={"format": "pt"},
)

corruption = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, len(VALID) - 1), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(0, len(VALID)), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, len(VALID)), st.integers(0, 255)),
    st.tuples(st.just("drop"), st.integers(0, len(VALID) - 1), st.just(0)),
)


def corrupted(changes: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(VALID)
    for kind, place, value in changes:
        match kind:
            case "flip":
                data[place : place + 1] = bytes([value])
            case "cut":
                del data[place:]
            case "insert":
                data.insert(place, value)
            case "drop":
                del data[place : place + 1]
    return bytes(data)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(corruption, min_size=1, max_size=3))
def test_corruption_is_an_error_or_reads_as_safetensors_reads_it(tmp_path, changes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(corrupted(changes))
    try:
        read = dict(open_checkpoint(path))
    except CheckpointError as error:
        fault = str(error)
    else:
        fault = None
    if fault is not None:
        assert fault.startswith(f"{path}: ")
        return
    expected = load_file(path)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert read[name].numpy().tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("tensor", "spec"),
    [
        (torch.zeros(2, 3), Spec("F32", (2, 3))),
        (torch.zeros(()), Spec("F32", ())),
        (torch.zeros(3, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), Spec("F4", (3, 4))),
    ],
)
def test_spec_of_a_tensor(tensor, spec):
    assert spec_of(tensor) == spec
    assert spec.nbytes == tensor.nbytes
