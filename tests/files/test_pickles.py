import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lora_tools.errors import CheckpointError
from lora_tools.files.header import Spec
from lora_tools.files.opening import open_checkpoint
from lora_tools.files.pickles import load_pickle

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}


def saved(path: Path, value: object, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".ckpt"])
def test_tensors_are_read_as_torch_saved_them(ending, zipped, tmp_path):
    path = saved(tmp_path / f"x{ending}", TENSORS, zipped=zipped)
    checkpoint = open_checkpoint(path)
    assert checkpoint.path == path
    assert checkpoint.metadata == {}
    assert checkpoint.specs == {"b": Spec("F32", (2, 3)), "a": Spec("BF16", (4,))}
    for name, tensor in TENSORS.items():
        assert checkpoint[name].dtype == tensor.dtype
        assert torch.equal(checkpoint[name], tensor)


def test_parameters_and_views_are_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    values = {"p": nn.Parameter(torch.ones(2)), "t": whole.T, "row": whole[1]}
    checkpoint = load_pickle(saved(tmp_path / "x.bin", values))
    for name, value in values.items():
        assert torch.equal(checkpoint[name], value)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": torch.ones(1), "b": x}])
def test_a_hostile_pickle_is_refused_and_does_nothing(wrap, zipped, tmp_path):
    trap = tmp_path / "trap"
    path = saved(tmp_path / "x.bin", wrap(Hostile(trap)), zipped=zipped)
    with pytest.raises(CheckpointError, match="cannot be read as tensors only") as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "never unpickles objects" in caught.value.__notes__[0]
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert trap.exists()


def test_a_bare_hostile_pickle_is_refused_and_does_nothing(tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    assert not trap.exists()


CONTENTS = {
    "an empty list": ([], "holds a list, not named tensors"),
    "a list of numbers": ([1.0], "not named, dense tensors: #0"),
    "a tensor": (torch.ones(1), "holds a Tensor, not named tensors"),
    "nested": ({"weights": {"a": torch.ones(1)}, "epoch": 3}, "weights, epoch"),
    "numbered": ({0: torch.ones(1)}, "not named, dense tensors: 0"),
    "sparse": ({"s": torch.eye(2).to_sparse()}, "not named, dense tensors: s"),
    "without data": ({"m": torch.ones(2, device="meta")}, "not named, dense tensors: m"),
    "wide complex": ({"c": torch.ones(1, dtype=torch.complex128)}, "of type torch.complex128"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_other_contents_are_refused_by_name(content, tmp_path):
    value, fault = CONTENTS[content]
    path = saved(tmp_path / "x.bin", value)
    with pytest.raises(CheckpointError) as caught:
        load_pickle(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


def test_an_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer") as caught:
        load_pickle(path)
    assert str(path) in str(caught.value)
    assert "git lfs pull" in caught.value.__notes__[0]


@pytest.mark.parametrize("content", [b"", b"\x80", b"hello", bytes(1000), b"PK\x03\x04"])
def test_other_bytes_are_refused(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as tensors only") as caught:
        load_pickle(path)
    assert str(path) in str(caught.value)


def test_a_zip_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
        load_pickle(path)


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "legacy"])
def valid(request, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "x.bin"
    return saved(path, TENSORS, zipped=request.param).read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_corruption_is_an_error_or_a_valid_read(valid, changes, kept, tmp_path):
    data = bytearray(valid)
    for place, value in changes:
        data[int(place * len(data))] = value
    path = tmp_path / "x.bin"
    path.write_bytes(data[: int(kept * len(data))])
    try:
        checkpoint = load_pickle(path)
    except CheckpointError as error:
        read = str(error)
    else:
        read = checkpoint
    if isinstance(read, str):
        assert read.startswith(f"{path}: ")
        return
    assert read.specs == {
        name: Spec({4: "F32", 2: "BF16"}[tensor.itemsize], tuple(tensor.shape))
        for name, tensor in read.items()
    }


def test_tensors_of_a_list_are_numbered(tmp_path):
    file = tmp_path / "lora.pt"
    torch.save([torch.zeros(2), torch.ones(3, 1)], file)
    checkpoint = load_pickle(file)
    assert list(checkpoint) == ["#0", "#1"]
    assert torch.equal(checkpoint["#1"], torch.ones(3, 1))


def test_a_dictionary_that_is_all_that_another_holds_is_taken_for_it(tmp_path):
    file = tmp_path / "lit_model.pth.lora"
    torch.save({"model": {"a": torch.ones(2)}}, file)
    assert torch.equal(load_pickle(file)["a"], torch.ones(2))
    assert list(open_checkpoint(file)) == ["a"]
    torch.save({"model": {"a": torch.ones(2)}, "step": 3}, file)
    with pytest.raises(CheckpointError, match="not named, dense tensors"):
        load_pickle(file)


def test_a_state_dict_is_read_without_what_a_trainer_notes_beside_it(tmp_path):
    noted = {"epoch": 3, "global_step": 470000, "hyper": {"rate": 1e-4}}
    checkpoint = load_pickle(saved(tmp_path / "x.ckpt", {"state_dict": TENSORS, **noted}))
    assert set(checkpoint) == {"a", "b"}
    assert checkpoint.notes == (
        "state_dict was read, and not what is beside it: epoch, global_step, hyper.",
    )


def test_a_tensor_that_repeats_its_elements_is_limited(tmp_path):
    few = {"a": torch.ones(1).expand(1000, 1000)}
    assert load_pickle(saved(tmp_path / "few.bin", few)).specs == {"a": Spec("F32", (1000, 1000))}
    for zipped in (True, False):
        many = {"a": torch.ones(1).expand(10**6, 10**6)}
        path = saved(tmp_path / "many.bin", many, zipped=zipped)
        with pytest.raises(CheckpointError, match=r"tensors of 4,000,000,000,000 bytes") as caught:
            load_pickle(path)
        assert "a has the shape [1000000, 1000000]" in str(caught.value)


def test_tensors_that_share_their_bytes_are_limited_together(tmp_path):
    whole = torch.ones(2000, 1000)
    assert len(load_pickle(saved(tmp_path / "two.bin", {"a": whole, "b": whole}))) == 2
    many = {f"t{number}": whole for number in range(20)}
    with pytest.raises(CheckpointError, match="tensors of 160,000,000 bytes"):
        load_pickle(saved(tmp_path / "many.bin", many))


def deflated(source: Path, path: Path, times: int = 1) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data if len(data) < 1000 else data * times)
    return path


def test_what_is_deflated_is_limited_before_it_is_inflated(tmp_path):
    plain = saved(tmp_path / "plain.bin", {"a": torch.zeros(100_000)})
    assert torch.equal(load_pickle(deflated(plain, tmp_path / "x.bin"))["a"], torch.zeros(100_000))
    bomb = deflated(plain, tmp_path / "bomb.bin", times=300)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="records would inflate to 120,"):
        load_pickle(bomb)


def test_a_storage_that_is_not_in_the_file_is_refused(tmp_path):
    """The older kind of file says how large its storages are before they come."""
    data = saved(tmp_path / "x.bin", {"a": torch.ones(1000)}, zipped=False).read_bytes()
    before, mark, behind = data.rpartition(b"M\xe8\x03")
    assert mark
    path = tmp_path / "x.bin"
    path.write_bytes(before + b"\x8a\x05" + (10**10).to_bytes(5, "little") + behind)
    with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
        load_pickle(path)


def test_views_that_are_to_be_negated_are_no_plain_tensors(tmp_path):
    value = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(CheckpointError, match="not named, dense tensors: a"):
        load_pickle(saved(tmp_path / "x.bin", {"a": value.conj()}))
