import errno
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lora_tools.errors import CheckpointError, OutputError
from lora_tools.files.header import Spec, spec_of
from lora_tools.files.layout import Layout, layout
from lora_tools.files.writer import TensorWriter, check_output, staged, staged_file

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.ones(5, dtype=torch.float16),
    "c": torch.tensor(3),
}


def plan(tensors: dict[str, torch.Tensor]) -> Layout:
    return layout({name: spec_of(tensor) for name, tensor in tensors.items()})


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a", "b"]])
def test_any_order_gives_the_same_bytes(order, tmp_path):
    with TensorWriter(tmp_path / "x", plan(TENSORS)) as file:
        for name in order:
            file[name] = TENSORS[name]
    assert (tmp_path / "x").read_bytes() == save(TENSORS)


def test_threads_give_the_same_bytes(tmp_path):
    tensors = {f"t{i}": torch.full((i * 31,), i, dtype=torch.int32) for i in range(1, 100)}
    with TensorWriter(tmp_path / "x", plan(tensors)) as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(file.__setitem__, tensors.keys(), tensors.values()))
    assert (tmp_path / "x").read_bytes() == save(tensors)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    with TensorWriter(tmp_path / "x", plan(TENSORS)) as file:
        for name, tensor in TENSORS.items():
            file[name] = tensor
    assert (tmp_path / "x").read_bytes() == save(TENSORS)


def test_views_and_parameters_are_written_by_value(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": whole.T, "strided": whole[:, ::2], "p": torch.nn.Parameter(torch.ones(2))}
    with TensorWriter(tmp_path / "x", plan(tensors)) as file:
        for name, tensor in tensors.items():
            file[name] = tensor
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_arrays_of_numpy_are_written_as_tensors_are(tmp_path):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {
        "t": whole.T,
        "strided": whole[:, ::2],
        "scalar": np.array(3),
        "none": whole[:0],
        "flags": whole > 5,
        "half": whole.astype(np.float16),
        "big": whole.astype(np.complex64),
    }
    with TensorWriter(tmp_path / "x", plan(arrays)) as file:
        for name, array in arrays.items():
            file[name] = array
    expected = {name: torch.tensor(array).contiguous() for name, array in arrays.items()}
    assert (tmp_path / "x").read_bytes() == save(expected)


@pytest.mark.parametrize("dtype", [">f4", "complex128", "U4", "O"])
def test_arrays_that_files_cannot_hold_are_refused(dtype):
    with pytest.raises(CheckpointError, match="cannot hold elements of type"):
        spec_of(np.zeros(2, dtype))


def test_tensors_that_were_never_written_are_named(tmp_path):
    writer = TensorWriter(tmp_path / "x", plan(TENSORS))
    with pytest.raises(CheckpointError, match="never written: a, c") as caught, writer as file:
        file["b"] = TENSORS["b"]
    assert str(tmp_path / "x") in str(caught.value)


def test_an_error_inside_is_not_hidden_by_missing_tensors(tmp_path):
    with pytest.raises(KeyError, match="inside"), TensorWriter(tmp_path / "x", plan(TENSORS)):
        raise KeyError("inside")


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(4, dtype=torch.float16),
        torch.ones(6, dtype=torch.float16),
        torch.ones(5, dtype=torch.bfloat16),
        torch.ones(5),
        torch.ones(5, 1, dtype=torch.float16),
        torch.ones(10, dtype=torch.uint8),
    ],
    ids=["shorter", "longer", "same size, other type", "wider", "other shape", "bytes"],
)
def test_a_tensor_that_was_not_laid_out_so_is_an_error(wrong, tmp_path):
    writer = TensorWriter(tmp_path / "x", plan(TENSORS))
    with pytest.raises(CheckpointError, match=r"a is .* was laid out"), writer as file:
        file["a"] = wrong


def test_a_name_that_was_not_laid_out_is_an_error(tmp_path):
    with pytest.raises(KeyError), TensorWriter(tmp_path / "x", plan(TENSORS)) as file:
        file["d"] = TENSORS["a"]


def test_an_existing_file_is_never_opened(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError), TensorWriter(tmp_path / "x", plan(TENSORS)):
        pass
    assert (tmp_path / "x").read_text() == "mine"


WRITE = """
import sys
from pathlib import Path
import torch
from lora_tools.files.header import Spec
from lora_tools.files.layout import layout
from lora_tools.files.writer import TensorWriter

count, size = int(sys.argv[2]), int(sys.argv[3])
names = [f"t{i:02}" for i in range(count)]
tensor = torch.ones(size, dtype=torch.uint8)
with TensorWriter(Path(sys.argv[1]), layout({n: Spec("U8", (size,)) for n in names})) as file:
    for name in names:
        file[name] = tensor
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
MIB = 2**20


def test_memory_follows_the_tensors_in_flight_and_not_the_file(tmp_path):
    def peak(name: str, size: int) -> int:
        command = [sys.executable, "-c", WRITE, str(tmp_path / name), "20", str(size)]
        return 1024 * int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert peak("big", 10 * MIB) - peak("tiny", 8) < 24 * MIB
    assert (tmp_path / "big").stat().st_size > 200 * MIB


def fill(folder: Path) -> None:
    with TensorWriter(folder / "x.safetensors", plan(TENSORS)) as file:
        for name, tensor in TENSORS.items():
            file[name] = tensor


def fail(out: Path, error: BaseException, *, force: bool) -> None:
    with staged(out, force=force) as place:
        fill(place)
        raise error


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "not" / "yet" / "there"
    with staged(out) as place:
        assert place.is_dir()
        assert place.parent == out.parent
        fill(place)
        assert not out.exists()
    assert [file.name for file in out.parent.iterdir()] == ["there"]
    assert (out / "x.safetensors").read_bytes() == save(TENSORS)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_nothing(error, force, tmp_path):
    with pytest.raises(error):
        fail(tmp_path / "out", error(), force=force)
    assert list(tmp_path.iterdir()) == []


def test_missing_tensors_leave_nothing(tmp_path):
    with (
        pytest.raises(CheckpointError),
        staged(tmp_path / "out") as place,
        TensorWriter(place / "x", plan(TENSORS)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_a_full_disk_leaves_nothing(writes, tmp_path, monkeypatch):
    pwrite, left = os.pwrite, iter(range(writes))

    def full(descriptor: int, data: memoryview, position: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space left"), staged(tmp_path / "out") as place:
        fill(place)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


CHILD = """
import sys, time
from pathlib import Path
import torch
from lora_tools.files.header import Spec
from lora_tools.files.layout import layout
from lora_tools.files.writer import TensorWriter, staged

specs = {f"t{i}": Spec("F32", (1000,)) for i in range(10)}
with staged(Path(sys.argv[1]), force=True) as place:
    with TensorWriter(place / "x.safetensors", layout(specs)) as file:
        for i in range(5):
            file[f"t{i}"] = torch.ones(1000)
        print("half", flush=True)
        sys.stdin.read()
"""


def kill_half_way(out: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", CHILD, str(out)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with child:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(number)
    assert child.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_in_mid_write_leaves_no_output(number, tmp_path):
    out = tmp_path / "out"
    kill_half_way(out, number)
    assert not out.exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.startswith(".out.partial-") for name in left)
    if number != signal.SIGKILL:
        assert left == []


def test_a_kill_in_mid_write_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    kill_half_way(out, signal.SIGKILL)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert (out / "mine").read_text() == "mine"


def test_a_file_size_limit_leaves_no_output(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path / "out")]
    limit = 20_000  # of some 40,000 bytes
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        input="",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def old(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    return out


def test_an_existing_output_is_kept_without_force(old):
    with pytest.raises(OutputError, match="exists already") as caught, staged(old):
        pytest.fail("entered")
    assert "--force" in caught.value.__notes__[0]
    assert [path.name for path in old.iterdir()] == ["mine"]


def test_an_existing_output_is_replaced_only_when_its_successor_is_complete(old):
    with staged(old, force=True) as place:
        fill(place)
        assert (old / "mine").read_text() == "mine"
    assert [path.name for path in old.iterdir()] == ["x.safetensors"]
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_a_failure_under_force_keeps_the_existing_output(old):
    with pytest.raises(ValueError, match="late"):
        fail(old, ValueError("late"), force=True)
    assert (old / "mine").read_text() == "mine"
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_a_failed_rename_puts_the_existing_output_back(old, monkeypatch):
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), staged(old, force=True) as place:
        fill(place)
    assert (old / "mine").read_text() == "mine"
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_an_existing_file_is_replaced(tmp_path):
    (tmp_path / "out").write_text("a file")
    with staged(tmp_path / "out", force=True) as place:
        fill(place)
    assert (tmp_path / "out" / "x.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_replaced_and_its_target_kept(old, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(old)
    with staged(link, force=True) as place:
        fill(place)
    assert not link.is_symlink()
    assert (old / "mine").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_a_dangling_link_is_in_the_way(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"), staged(link):
        pytest.fail("entered")
    with pytest.raises(OutputError, match="exists already"):
        check_output(link, {}, force=False)
    assert link.is_symlink()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(TENSORS, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("out", "fault"),
    [
        ("source", "is the adapter itself"),
        ("source/", "is the adapter itself"),
        ("source/../source", "is the adapter itself"),
        ("other/../source/.", "is the adapter itself"),
        ("source/out", "lies inside the adapter"),
        ("source/deep/out", "lies inside the adapter"),
        ("link", "is the adapter itself"),
        ("link/out", "lies inside the adapter"),
    ],
)
def test_an_output_that_would_harm_an_input_is_refused(out, fault, force, source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match=fault) as caught:
        check_output(tmp_path / out, {"adapter": source}, force=force)
    assert caught.value.__notes__


def test_an_input_behind_a_link_is_recognised(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="is the base itself"):
        check_output(source, {"adapter": tmp_path / "other", "base": tmp_path / "link"}, force=True)


def test_an_output_that_holds_an_input_is_refused(source):
    file = source / "adapter_model.safetensors"
    with pytest.raises(OutputError, match="holds the adapter") as caught:
        check_output(source, {"adapter": file}, force=True)
    assert str(file) in str(caught.value)
    with pytest.raises(OutputError, match="exists already"):
        check_output(source, {"adapter": file}, force=False)


def test_an_output_beside_its_input_is_allowed(source, tmp_path):
    check_output(tmp_path / "out", {"adapter": source}, force=False)
    check_output(tmp_path / "source-small", {"adapter": source}, force=False)
    check_output(source / "out", {"adapter": source / "adapter_model.safetensors"}, force=False)


def test_an_existing_output_needs_force(source, old):
    with pytest.raises(OutputError, match="exists already"):
        check_output(old, {"adapter": source}, force=False)
    check_output(old, {"adapter": source}, force=True)


def test_a_file_is_replaced_only_when_its_successor_is_whole(tmp_path):
    file = tmp_path / "a.txt"
    with staged_file(file) as place:
        assert place.suffix == ".txt"
        place.write_text("one")
    assert file.read_text() == "one"
    with pytest.raises(OutputError, match="exists already"), staged_file(file):
        pass
    with pytest.raises(FileNotFoundError), staged_file(file, force=True) as place:
        (tmp_path / "nothing").rename(place)
    assert file.read_text() == "one"
    with pytest.raises(OutputError, match="there is no folder"), staged_file(tmp_path / "b" / "c"):
        pass
    with pytest.raises(OutputError, match="is a folder"), staged_file(tmp_path, force=True):
        pass
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_are_written_as_they_are(tmp_path):
    file = tmp_path / "x.safetensors"
    bits = np.array([0x3F80, 0x4000], np.uint16)
    with TensorWriter(file, layout({"x": Spec("BF16", (2,))})) as writer:
        with pytest.raises(CheckpointError, match="has 2 bytes where"):
            writer.put("x", memoryview(bits[:1].tobytes()))
        writer.put("x", memoryview(bits.tobytes()))
    assert load_file(file)["x"].tolist() == [1.0, 2.0]
