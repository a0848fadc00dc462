"""NumPy archives: numpy reads the same, or they are refused."""

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lora_tools.errors import CheckpointError
from lora_tools.files.npz import CODES, read_npz

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def npy(text: str, data: bytes = ARRAY.tobytes(), version: int = 1, length: int | None = None):
    stated = text.encode("latin-1") if version < 3 else text.encode()
    width = "<H" if version == 1 else "<I"
    count = struct.pack(width, len(stated) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + count + stated + data


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"

SOUND = {
    "as numpy writes it": HEADER,
    "in version 2": (HEADER, 2),
    "in version 3": (HEADER, 3),
    "in another order": "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}",
    "with double quotes": '{"descr": "<f4", "fortran_order": False, "shape": (2, 3)}',
    "without spaces": "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
    "of one dimension": "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }",
    "of one dimension, in Fortran's order": (
        "{'descr': '<f4', 'fortran_order': True, 'shape': (6,), }"
    ),
}


@pytest.mark.parametrize("what", SOUND)
def test_headers_that_numpy_reads_are_read(what, tmp_path):
    text, version = SOUND[what] if isinstance(SOUND[what], tuple) else (SOUND[what], 1)
    path = archive(tmp_path / "x.npz", {"a.npy": npy(text, version=version)})
    assert np.array_equal(read_npz(path)["a"].numpy(), np.load(path)["a"])


@pytest.mark.parametrize("code", CODES)
def test_every_type_is_read_as_numpy_reads_it(code, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones((2, 3), code), b=np.zeros((), code), c=np.ones((0, 4), code))
    found = read_npz(path)
    for name, array in np.load(path).items():
        assert np.array_equal(found[name].numpy(), array)


ODD = {
    "no dictionary": "[1, 2]",
    "code": "{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (2, 3)}",
    "a type of fields": "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}",
    "a type of numbers": "{'descr': 4, 'fortran_order': False, 'shape': (2, 3)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
    "an unknown type": "{'descr': '<f3', 'fortran_order': False, 'shape': (2, 3)}",
    "big-endian": "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}",
    "half a dictionary": "{'descr': '<f4', 'fortran_order': False",
    "no shape": "{'descr': '<f4', 'fortran_order': False}",
    "more than three keys": HEADER.replace("}", "'x': 'y'}"),
    "a key twice": HEADER.replace("}", "'descr': '<f8'}"),
    "a shape of one number": "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
    "a shape in brackets": "{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}",
    "a shape that is no tuple": "{'descr': '<f4', 'fortran_order': False, 'shape': (6)}",
    "a shape of text": "{'descr': '<f4', 'fortran_order': False, 'shape': ('2', 3)}",
    "a shape of flags": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 6)}",
    "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
    "a shape with holes": "{'descr': '<f4', 'fortran_order': False, 'shape': (2,,3)}",
    "a shape of too many": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4)}",
    "an endless shape": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999)}"
    ),
    "an endless shape behind a zero": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9999999999, 9999999999)}"
    ),
    "a number without end": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 5000},)}}",
    "dimensions without end": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 90})}}",
    "an order of text": "{'descr': '<f4', 'fortran_order': 'no', 'shape': (2, 3)}",
    "Fortran's order": "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}",
    "nothing": "",
    "deeply nested": "{" * 3000,
    "signs": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 8000 + "2, 3)}",
    "bytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}\0\xff",
}


@pytest.mark.parametrize("what", ODD)
def test_odd_headers_are_refused_by_name(what, tmp_path):
    path = archive(tmp_path / "x.npz", {"a.npy": npy(ODD[what])})
    with pytest.raises(CheckpointError) as caught:
        read_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


def patched(data: bytes, mark: bytes, offset: int, code: str, value: int) -> bytes:
    """Change a field of a zip's record, found by its mark."""
    made = bytearray(data)
    struct.pack_into(code, made, data.index(mark) + offset, value)
    return bytes(made)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ZIPS = {
    "encrypted": [(CENTRAL, 8, "<H", 1)],
    "encrypted only where it lies": [(LOCAL, 6, "<H", 1)],
    "compressed only in the directory": [(CENTRAL, 10, "<H", 8)],
    "compressed only where it lies": [(LOCAL, 8, "<H", 8)],
    "of an unknown method": [(CENTRAL, 10, "<H", 77)],
    "larger in the directory": [(CENTRAL, 20, "<I", 2**31), (CENTRAL, 24, "<I", 2**31)],
    "of two sizes": [(CENTRAL, 24, "<I", 2**31)],
    "elsewhere in the directory": [(CENTRAL, 42, "<I", 5)],
    "far away in the directory": [(CENTRAL, 42, "<I", 2**32 - 2)],
    "of another name where it lies": [(LOCAL, 30, "<B", ord("z"))],
    "with a longer name where it lies": [(LOCAL, 26, "<H", 60000)],
    "with a directory elsewhere": [(END, 16, "<I", 2**31)],
    "with a larger directory": [(END, 12, "<I", 2**31)],
    "with no directory": [(END, 0, "<I", 0)],
    "that needs a newer zip": [(CENTRAL, 6, "<H", 255)],
}


@pytest.mark.parametrize("what", ZIPS)
def test_a_zip_that_contradicts_itself_is_refused(what, tmp_path):
    data = archive(tmp_path / "x.npz", {"a.npy": npy(HEADER)}).read_bytes()
    for change in ZIPS[what]:
        data = patched(data, *change)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.npz: "):
        read_npz(tmp_path / "x.npz")


def test_an_array_twice_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    for names in (("a.npy", "a.npy"), ("a.npy", "a")):
        with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                file.writestr(name, npy(HEADER))
        with pytest.raises(CheckpointError, match="a occurs twice"):
            read_npz(path)


def test_entries_upon_each_other_are_refused(tmp_path):
    """What makes a bomb of a small file: many entries of one and the same bytes."""
    inner = npy(HEADER)
    local = LOCAL + bytes(22) + struct.pack("<HH", 5, 0) + b"b.npy" + inner
    space = len(local)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({space},), }}"
    data = archive(tmp_path / "x.npz", {"a.npy": npy(header, local), "b.npy": inner}).read_bytes()
    inside = data.index(local)
    at = data.index(CENTRAL, data.index(CENTRAL) + 4)
    data = data[: at + 42] + struct.pack("<I", inside) + data[at + 46 :]
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match="b overlaps a"):
        read_npz(tmp_path / "x.npz")


def test_a_descriptor_behind_the_data_does_no_harm(tmp_path):
    """As written to a stream, which cannot go back to fill the sizes in."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.npy", npy(HEADER))
        file.writestr("b.npy", npy(HEADER))
    (tmp_path / "x.npz").write_bytes(stream.data)
    found = read_npz(tmp_path / "x.npz")
    assert all(np.array_equal(found[name].numpy(), ARRAY) for name in "ab")


def test_a_bomb_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", {"a.npy": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_npz(path)


def test_numpy_agrees_on_any_change_of_a_byte(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=ARRAY, b=np.ones(40, np.float16))
    whole = path.read_bytes()
    random, read = np.random.default_rng(0), 0
    for _ in range(600):
        data = bytearray(whole)
        data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            found = {name: tensor.numpy() for name, tensor in read_npz(path).items()}
        except CheckpointError:
            continue
        read += 1
        try:
            theirs = dict(np.load(path))
        except Exception:  # noqa: BLE001 - a checksum, which reading by position leaves alone
            continue
        assert theirs.keys() == found.keys()
        assert all(np.array_equal(found[name], theirs[name], equal_nan=True) for name in theirs)
    assert read > 100
