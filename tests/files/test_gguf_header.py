"""GGUF headers of strangers: every count and length is held against the file before it is used."""

import io
import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from judges import judge

from lora_tools.errors import CheckpointError
from lora_tools.files.gguf import read_gguf
from lora_tools.files.gguf_header import BLOCKS, KINDS, MAX_ITEMS, VERSIONS, read_gguf_header

gguf = judge("gguf")
PLACE = Path("x.gguf")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def kind(name: str) -> bytes:
    return struct.pack("<I", KINDS.index(name))


def field(name: str, type: str, value: bytes) -> bytes:
    return text(name) + kind(type) + value


def tensor(name: str, shape: tuple[int, ...] = (2,), type: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", type, offset)


def header(
    *parts: bytes,
    version: int = 3,
    tensors: int | None = None,
    fields: int | None = None,
    data: int = 64,
    kinds: tuple[list[bytes], list[bytes]] | None = None,
) -> bytes:
    kvs, infos = kinds or ([], list(parts))
    counts = (
        len(infos) if tensors is None else tensors,
        len(kvs) if fields is None else fields,
    )
    made = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*kvs, *infos])
    return made + bytes(-len(made) % 32) + bytes(data)


def parse(data: bytes):
    return read_gguf_header(io.BytesIO(data), len(data), PLACE)


def with_field(name: str, type: str, value: bytes) -> bytes:
    return header(kinds=([field(name, type, value)], [tensor("w")]))


HUGE = struct.pack("<Q", 2**63)
MANY = struct.pack("<Q", 2**40)

DAMAGED = {
    "tensors without end": (header(tensors=2**40), "items, which the header has no room for"),
    "fields without end": (header(fields=2**63), "items, which the header has no room for"),
    "more fields than there are": (header(fields=2), r" occurs twice|unknown type"),
    "a name without end": (header(kinds=([HUGE + b"x"], [])), "bytes at"),
    "an array without end": (
        with_field("a", "ARRAY", kind("UINT8") + MANY),
        "items, which the header has no room for",
    ),
    "an array of strings without end": (
        with_field("a", "ARRAY", kind("STRING") + MANY),
        "items, which the header has no room for",
    ),
    "an array of arrays": (
        with_field("a", "ARRAY", kind("ARRAY") + MANY + kind("ARRAY") + MANY),
        "a is an array of arrays",
    ),
    "a string that is no text": (with_field("a", "STRING", text(b"\xff")), "utf-8"),
    "a type of field": (header(kinds=([text("a") + struct.pack("<I", 13)], [])), "unknown type 13"),
    "a field twice": (
        header(kinds=([field("a", "UINT8", b"1")] * 2, [])),
        "a occurs twice",
    ),
    "a tensor twice": (header(tensor("w"), tensor("w", offset=32)), "w occurs twice"),
    "dimensions": (header(tensor("w", (1, 1, 1, 1, 1))), "w has 5 dimensions"),
    "dimensions without end": (
        header(text("w") + struct.pack("<I", 2**31), tensors=1),
        "w has 2,147,483,648 dimensions",
    ),
    "a product that is too large": (
        header(tensor("w", (2**32, 2**32))),
        "w has the impossible shape",
    ),
    "a product that hides behind a zero": (
        header(tensor("w", (2**40, 0, 2**40))),
        "w has the impossible shape",
    ),
    "a type of tensor": (header(tensor("w", type=4)), "w is of the unknown type 4"),
    "a row of half a block": (header(tensor("w", (16, 2), type=8)), "no whole blocks of Q8_0"),
    "a tensor beyond the end": (header(tensor("w", offset=4096)), "w lies at bytes"),
    "an offset without end": (header(tensor("w", offset=2**63)), "w lies at bytes"),
    "an offset that is not aligned": (header(tensor("w", offset=4)), "w lies at bytes"),
    "tensors upon each other": (header(tensor("w", (16,)), tensor("v", (3,))), "overlaps"),
    "no alignment": (with_field("general.alignment", "UINT32", bytes(4)), "no power of two"),
    "an alignment of 3": (
        with_field("general.alignment", "UINT32", struct.pack("<I", 3)),
        "no power of two",
    ),
    "an alignment of gigabytes": (
        with_field("general.alignment", "UINT32", struct.pack("<I", 2**31)),
        "no power of two",
    ),
    "an alignment of text": (
        with_field("general.alignment", "STRING", text("32")),
        "no power of two",
    ),
    "version 1": (header(version=1), "version 1, where 2 and 3 are known"),
    "version 0": (header(version=0), "version 0"),
    "nothing": (b"", "does not begin with GGUF"),
    "the magic alone": (b"GGUF", "left"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", DAMAGED)
def test_what_a_header_claims_is_refused_before_it_is_believed(what, tmp_path):
    data, why = DAMAGED[what]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=why) as caught:
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: damaged, or not a GGUF file (")
    assert peak < 2_000_000


def test_what_is_sound_is_read():
    fields = [field("a", "ARRAY", kind("STRING") + struct.pack("<Q", 2) + text("x") + text("ü"))]
    fields.append(field("b", "BOOL", b"\1"))
    found = parse(header(kinds=(fields, [tensor("w", (3, 2)), tensor("v", (), offset=32)])))
    assert {name: value.value for name, value in found.fields.items()} == {
        "a": ["x", "ü"],
        "b": True,
    }
    w, v = found.tensors["w"], found.tensors["v"]
    assert (w.block.name, w.shape, w.stop - w.start) == ("F32", (2, 3), 24)
    assert (v.shape, v.start - w.start, v.stop - v.start) == ((), 32, 4)


def test_the_items_of_a_header_are_limited():
    count = MAX_ITEMS + 1
    value = kind("UINT8") + struct.pack("<Q", count) + bytes(count)
    with pytest.raises(CheckpointError, match="no room"):
        parse(header(kinds=([field("a", "ARRAY", value)], [])))
    value = kind("UINT8") + struct.pack("<Q", 10) + bytes(10)
    assert parse(header(kinds=([field("a", "ARRAY", value)], []))).fields["a"].value == [0] * 10


def test_types_are_those_of_the_package():
    assert [item.name for item in gguf.GGUFValueType] == list(KINDS)
    assert gguf.constants.GGUF_VERSION in VERSIONS
    for known in gguf.GGMLQuantizationType:
        sizes = gguf.GGML_QUANT_SIZES[known]
        assert BLOCKS[known.value] == (known.name, *sizes)


@pytest.mark.timeout(60)
def test_the_package_agrees_on_any_change_of_a_byte(tmp_path):
    """What is read of a damaged file is what the package reads of it, or it is refused."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a", 7)
    writer.add_array("b", ["x", "yz"])
    writer.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("v", np.ones(40, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    random, read = np.random.default_rng(0), 0
    for _ in range(400):
        data = bytearray(whole)
        data[random.integers(len(data) - 128)] = random.integers(256)
        path.write_bytes(data)
        try:
            found = read_gguf(path)
        except CheckpointError:
            continue
        read += 1
        theirs = {each.name: each for each in gguf.GGUFReader(path).tensors}
        assert theirs.keys() == found.specs.keys()
        for name, each in theirs.items():
            assert found.specs[name].shape == tuple(int(n) for n in reversed(each.shape))
            assert found.bytes_of(name).tobytes() == each.data.tobytes()
    assert read > 50  # names and values may be any


def test_a_product_of_no_dimensions_is_one():
    assert math.prod(parse(header(tensor("w", ()))).tensors["w"].shape) == 1
