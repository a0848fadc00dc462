import json
import os
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from looks import looked_at
from safetensors.torch import save_file
from torch import Tensor

from lora_tools.errors import CheckpointError
from lora_tools.files.dtypes import DTYPES, torch_dtype
from lora_tools.files.header import Slot, Spec
from lora_tools.files.opening import open_checkpoint, open_partly
from lora_tools.files.place import Place, expect, read_tensor

TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "h": torch.arange(8, dtype=torch.bfloat16),
    "n": torch.tensor(7),
    "e": torch.empty(0, 3),
}
SHARDS = {
    "model-00001-of-00002.safetensors": ["w", "h"],
    "model-00002-of-00002.safetensors": ["n", "e"],
}


def shard(folder: Path, weight_map: object = None) -> Path:
    """Write `TENSORS` as two shards with an index, in Hugging Face's way."""
    for file, names in SHARDS.items():
        save_file({name: TENSORS[name] for name in names}, folder / file, {"format": "pt"})
    if weight_map is None:
        weight_map = {name: file for file, names in SHARDS.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.flatten().view(torch.uint8).equal(expected.flatten().view(torch.uint8))


@pytest.mark.parametrize("kind", ["file", "folder", "index", "folder of shards"])
def test_every_kind_reads_alike(kind, tmp_path):
    sharded = kind in ("index", "folder of shards")
    path = shard(tmp_path) if sharded else tmp_path / "x.safetensors"
    if not sharded:
        save_file(TENSORS, path, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path if kind.startswith("folder") else path)
    assert checkpoint.path == path
    assert set(checkpoint) == set(TENSORS)
    assert len(checkpoint) == len(TENSORS)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.specs == {
        "w": Spec("F32", (2, 3)),
        "h": Spec("BF16", (8,)),
        "n": Spec("I64", ()),
        "e": Spec("F32", (0, 3)),
    }
    for name, expected in TENSORS.items():
        assert_same(checkpoint[name], expected)


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.torch], ids=lambda d: d.code)
def test_every_type_is_read(dtype, tmp_path):
    raw = torch.randint(0, 2, (4, 16), dtype=torch.uint8).view(torch_dtype(dtype.code))
    save_file({"x": raw, "none": raw[:0].clone()}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint["x"], raw)
    assert_same(checkpoint["none"], raw[:0])


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.torch], ids=lambda d: d.code)
def test_arrays_hold_what_tensors_hold(dtype, tmp_path):
    raw = torch.randint(0, 2, (4, 16), dtype=torch.uint8).view(torch_dtype(dtype.code))
    save_file({"x": raw, "none": raw[:0].clone()}, tmp_path / "x.safetensors")
    arrays = open_checkpoint(tmp_path).arrays
    assert set(arrays) == {"x", "none"}
    assert len(arrays) == 2
    in_numpy = dtype.code == "BOOL" or dtype.code[0] in "CIU" or dtype.code in ("F16", "F32", "F64")
    for name, expected in (("x", raw), ("none", raw[:0])):
        assert isinstance(arrays[name], np.ndarray) is in_numpy
        found = torch.from_numpy(arrays[name]) if in_numpy else arrays[name]
        assert_same(found, expected)


def test_a_scalar_is_an_array_of_no_dimensions(single):
    array = open_checkpoint(single).arrays["n"]
    assert (array.shape, array.dtype, int(array)) == ((), np.int64, 7)


def test_arrays_of_a_pickle_are_its_tensors(tmp_path):
    torch.save({"w": TENSORS["w"]}, tmp_path / "x.bin")
    assert_same(open_checkpoint(tmp_path / "x.bin").arrays["w"], TENSORS["w"])


def test_iteration_is_in_file_order(single):
    checkpoint = open_checkpoint(single)
    starts = [checkpoint._places[name].slot.start for name in checkpoint]
    assert starts == sorted(starts)


def test_nothing_is_cached(single):
    checkpoint = open_checkpoint(single)
    checkpoint["w"].zero_()
    assert_same(checkpoint["w"], TENSORS["w"])


def test_a_tensor_outlives_its_file_which_is_never_mapped(single):
    checkpoint = open_checkpoint(single)
    tensor = checkpoint["w"]
    assert single.name not in Path("/proc/self/maps").read_text()
    single.write_bytes(bytes(single.stat().st_size))
    single.unlink()
    assert_same(tensor, TENSORS["w"])


def test_asking_whether_a_tensor_is_there_reads_nothing(single):
    checkpoint = open_checkpoint(single)
    single.unlink()
    for mapping in (checkpoint, checkpoint.arrays):
        assert "w" in mapping
        assert "x" not in mapping


def test_an_unknown_name_is_a_key_error(single):
    with pytest.raises(KeyError):
        open_checkpoint(single)["x"]


def test_short_reads_are_continued(single, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:5]], at))
    assert_same(open_checkpoint(single)["w"], TENSORS["w"])


def test_a_file_that_became_shorter_is_an_error(single):
    checkpoint = open_checkpoint(single)
    os.truncate(single, single.stat().st_size - 30)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        list(checkpoint.values())


def test_reading_leaves_no_descriptor_open(single):
    checkpoint = open_checkpoint(single)
    before = len(list(Path("/proc/self/fd").iterdir()))
    list(checkpoint.values())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_read_side_by_side(tmp_path):
    tensors = {f"t{i}": torch.full((257,), float(i)) for i in range(64)}
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for name, found in zip(tensors, pool.map(checkpoint.__getitem__, tensors), strict=True):
            assert_same(found, tensors[name])


def test_a_place_can_be_sent_elsewhere(single):
    place = open_checkpoint(single)._places["h"]
    assert_same(read_tensor(pickle.loads(pickle.dumps(place))), TENSORS["h"])


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), ()])
def test_f4_that_is_not_in_pairs_along_its_last_dimension_is_refused(shape, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(8))
    place = Place(path, Slot(Spec("F4", shape), 0, 3))
    if shape == (3, 2):
        assert read_tensor(place).shape == (3, 1)
        return
    with pytest.raises(CheckpointError, match="holds F4 in pairs"):
        read_tensor(place)


def test_a_type_that_torch_lacks_can_be_listed_and_not_read(tmp_path):
    entry = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}
    text = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(3))
    checkpoint = open_checkpoint(path)
    assert checkpoint.specs["x"] == Spec("F6_E2M3", (4,))
    with pytest.raises(CheckpointError, match="no dtype F6_E2M3"):
        checkpoint["x"]


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nowhere.safetensors")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        open_checkpoint(tmp_path)


def test_two_files_in_a_folder_are_an_error_that_names_them(tmp_path):
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"more than one .*a\.safetensors, b\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    index = shard(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing shards: model-00002-of-00002") as caught:
        open_checkpoint(tmp_path)
    assert str(index) in str(caught.value)


def test_a_tensor_that_no_shard_holds_is_named(tmp_path):
    index = shard(tmp_path)
    document = json.loads(index.read_text())
    document["weight_map"]["ghost"] = next(iter(SHARDS))
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"do not hold ghost\b"):
        open_checkpoint(index)


def test_a_tensor_in_another_shard_than_the_index_says_is_named(tmp_path):
    first, second = SHARDS
    shard(tmp_path, {"w": second, "h": first, "n": second, "e": second})
    with pytest.raises(CheckpointError, match=r"do not hold w\b"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_an_error(tmp_path):
    index = shard(tmp_path)
    document = json.loads(index.read_text())
    name, file = document["weight_map"].popitem()
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"does not name {name} of {file}"):
        open_checkpoint(index)


def test_the_index_says_which_of_two_shards_holds_a_tensor(tmp_path):
    shard(tmp_path)
    second = list(SHARDS)[1]
    save_file({"n": TENSORS["n"], "e": TENSORS["e"], "w": torch.zeros(2, 3)}, tmp_path / second)
    assert_same(open_checkpoint(tmp_path)["w"], TENSORS["w"])


def test_a_damaged_shard_is_named(tmp_path):
    shard(tmp_path)
    second = tmp_path / list(SHARDS)[1]
    os.truncate(second, second.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="truncated") as caught:
        open_checkpoint(tmp_path)
    assert str(second) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"weight_map": {"a": "x\\u0000.safetensors"}}',
        b'{"weight_map": {"a": "\\ud800.safetensors"}}',
        b'{"weight_map": {"a": ""}}',
        b'{"weight_map": []}',
        b'{"weight_map": null}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "x", "b": 2}}',
        b'{"weight_map": {"a": "nul\\u0000byte"}}',
    ],
)
def test_an_index_that_is_none_is_an_error(text, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index)
    assert str(caught.value).startswith(f"{index}: ")


READER = """
import sys
from pathlib import Path
from lora_tools.files.opening import open_checkpoint

path, hoard = Path(sys.argv[1]), []
for tensor in open_checkpoint(path).values():
    if sys.argv[2] == "hoard":
        hoard.append(tensor)
# Not ru_maxrss: that starts from the peak of the process which spawned this one.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
MIB = 2**20
TENSOR = 10 * MIB


def big(path: Path, count: int, size: int) -> Path:
    """Write a sparse file of ``count`` tensors of ``size`` bytes."""
    header = {
        f"t{i}": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, path.stat().st_size + count * size)
    return path


def peak(path: Path, how: str) -> int:
    """Return the peak memory of a process that reads every tensor, in bytes."""
    command = [sys.executable, "-c", READER, str(path), how]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_memory_follows_the_tensors_in_flight_and_not_the_file(tmp_path):
    tiny = peak(big(tmp_path / "tiny.safetensors", 30, 8), "stream")
    file = big(tmp_path / "big.safetensors", 30, TENSOR)
    # One tensor is read while the one before is still held.
    assert peak(file, "stream") - tiny < 2 * TENSOR + 4 * MIB
    assert peak(file, "hoard") - tiny > 25 * TENSOR  # else the line above measures nothing


def pickled_shards(folder: Path, missing: tuple[str, ...] = ()) -> Path:
    """Write `TENSORS` as PyTorch's own shards, in Hugging Face's old way."""
    where = {}
    for number, (name, tensor) in enumerate(TENSORS.items()):
        file = f"pytorch_model-{number}.bin"
        where[name] = file
        torch.save({} if name in missing else {name: tensor}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


@pytest.mark.parametrize("by", ["index", "folder"])
def test_pickled_shards_read_alike(by, tmp_path):
    index = pickled_shards(tmp_path)
    found = open_checkpoint(index if by == "index" else tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert_same(found[name], tensor)


def test_a_tensor_that_no_pickled_shard_holds_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="the shards do not hold h"):
        open_checkpoint(pickled_shards(tmp_path, missing=("h",)))


@pytest.mark.parametrize("how", ["safetensors", "pickle"])
def test_parts_of_a_tensor_are_read(how, tmp_path):
    if how == "pickle":
        pickled_shards(tmp_path)
    else:
        shard(tmp_path)
    found = open_checkpoint(tmp_path)
    whole = bytes(found.bytes_of("w"))
    assert whole == TENSORS["w"].numpy().tobytes()
    assert bytes(found.bytes_of("w", 4, 12)) == whole[4:12]
    assert found.bytes_of("e").size == 0


def test_files_of_shards(tmp_path):
    found = open_checkpoint(shard(tmp_path))
    assert [file.name for file in found.files] == list(SHARDS)


def test_what_is_expected_is_read_as_ever(tmp_path):
    save_file({"a": torch.arange(6.0)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.arange(6.0)}, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        checkpoint = open_checkpoint(tmp_path / name)
        expect(checkpoint._places["a"])
        assert checkpoint["a"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.safetensors", "sub/../../up.safetensors", "..", "//x", "a/.."]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("open_it", [open_checkpoint, open_partly])
def test_an_index_that_leads_out_of_its_folder_is_refused_by_name(index, name, open_it, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "up.safetensors").write_bytes(b"outside")
    (folder / index).write_text(json.dumps({"weight_map": {"a": name, "b": "in.safetensors"}}))
    with looked_at() as paths, pytest.raises(CheckpointError, match="outside its folder") as caught:
        open_it(folder)
    assert name in str(caught.value)
    assert "in.safetensors" not in str(caught.value)
    assert {path for path in paths if str(tmp_path) in path} <= {
        str(folder),
        str(folder / index),
        str(folder / "model_index.json"),  # which would make it a pipeline's
    }


def test_a_shard_may_lie_below_its_index(tmp_path):
    index = shard(tmp_path)
    document = json.loads(index.read_bytes())
    (tmp_path / "below").mkdir()
    for file in SHARDS:
        (tmp_path / file).rename(tmp_path / "below" / file)
    document["weight_map"] = {k: f"below/{v}" for k, v in document["weight_map"].items()}
    index.write_text(json.dumps(document))
    assert open_checkpoint(index).keys() == document["weight_map"].keys()


def test_an_index_that_calls_its_shards_like_other_files_is_refused(tmp_path):
    index = shard(tmp_path)
    document = json.loads(index.read_bytes())
    first, second = SHARDS
    (tmp_path / first).rename(tmp_path / "config.json")
    names = {first: "config.json", second: second}
    document["weight_map"] = {key: names[file] for key, file in document["weight_map"].items()}
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"no shards: config\.json$"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    ("chosen", "beside"),
    [
        ("pytorch_model.bin", ["optimizer.bin", "training_args.bin"]),
        ("model.safetensors", ["consolidated.safetensors"]),
        ("model.safetensors", ["adapter_model.safetensors", "pytorch_model.bin"]),
    ],
)
def test_a_folder_s_model_is_what_transformers_would_load(chosen, beside, tmp_path):
    for name in (chosen, *beside):
        tensors = {"a": torch.full((2,), float(name == chosen))}
        save = torch.save if name.endswith(".bin") else save_file
        save(tensors, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint["a"].tolist() == [1, 1]
    (note,) = checkpoint.notes
    assert note == f"{chosen} is read, and not {', '.join(beside)} beside it."


def test_shards_are_read_and_not_the_same_weights_in_one_file(tmp_path):
    shard(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert "other" not in checkpoint
    assert "consolidated.safetensors beside it" in checkpoint.notes[0]
    (tmp_path / "consolidated.safetensors").unlink()
    assert not open_checkpoint(tmp_path).notes


def test_shards_without_their_index_and_an_index_without_its_shards_are_named(tmp_path):
    index = shard(tmp_path)
    text = index.read_text()
    index.unlink()
    for number, file in enumerate(SHARDS, 1):
        (tmp_path / file).rename(tmp_path / f"a-0000{number}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"shards without their index: a-00001-of-00002"):
        open_checkpoint(tmp_path)
    for file in tmp_path.glob("*"):
        file.unlink()
    index.write_text(text)
    with pytest.raises(CheckpointError, match="missing shards"):
        open_checkpoint(tmp_path)
