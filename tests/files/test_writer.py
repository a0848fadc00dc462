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

from lora_tools.errors import CheckpointError, DiskError, OutputError
from lora_tools.files import renames, writer
from lora_tools.files.header import Spec, spec_of
from lora_tools.files.layout import Layout, layout
from lora_tools.files.ours import REPORT
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
        assert place.stat().st_dev == out.parent.stat().st_dev
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
    assert left == ([".out.partial"] if number == signal.SIGKILL else [])
    with staged(out) as place:  # the next run takes over what is left
        assert list(place.iterdir()) == []
        fill(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_in_mid_write_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / REPORT).write_text("mine")
    kill_half_way(out, signal.SIGKILL)
    assert [path.name for path in out.iterdir()] == [REPORT]
    assert (out / REPORT).read_text() == "mine"


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
    (out / REPORT).write_text("mine")
    return out


def test_an_existing_output_is_kept_without_force(old):
    with pytest.raises(OutputError, match="exists already") as caught, staged(old):
        pytest.fail("entered")
    assert "--force" in caught.value.__notes__[0]
    assert [path.name for path in old.iterdir()] == [REPORT]


def test_an_existing_output_is_replaced_only_when_its_successor_is_complete(old):
    with staged(old, force=True) as place:
        fill(place)
        assert (old / REPORT).read_text() == "mine"
    assert [path.name for path in old.iterdir()] == ["x.safetensors"]
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_a_failure_under_force_keeps_the_existing_output(old):
    with pytest.raises(ValueError, match="late"):
        fail(old, ValueError("late"), force=True)
    assert (old / REPORT).read_text() == "mine"
    assert [path.name for path in old.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("step", ["exchange", "sync"])
@pytest.mark.parametrize("error", [PermissionError, KeyboardInterrupt])
def test_a_failure_while_it_is_replaced_keeps_the_existing_output(old, step, error, monkeypatch):
    real = getattr(writer, step)

    def fail_once(*paths: Path) -> None:
        monkeypatch.setattr(writer, step, real)
        raise error("no")

    monkeypatch.setattr(writer, step, fail_once)
    with pytest.raises(error), staged(old, force=True) as place:
        fill(place)
    assert (old / REPORT).read_text() == "mine"
    assert [path.name for path in old.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_interrupt_right_after_a_rename_is_undone(tmp_path, there, kernel, kind, monkeypatch):
    """Each call that changes names is made, and then interrupted before it returns."""
    out = tmp_path / "out.json"
    if not kernel:
        monkeypatch.setattr(renames, "_renameat2", lambda *_: False)

    def attempt(number: int) -> bool:
        left = iter(range(number))

        def then_interrupt(real):
            def call(*arguments):
                result = real(*arguments)
                if next(left, None) is None:
                    patched.undo()
                    raise KeyboardInterrupt
                return result

            return call

        def publish(*arguments, **options) -> None:
            whole(*arguments, **options)
            patched.undo()  # what follows is the removal of the folder

        patched, whole = pytest.MonkeyPatch(), writer.publish
        patched.setattr(writer, "publish", publish)
        try:
            with (staged if kind == "folder" else staged_file)(out, force="any") as place:
                target = place / "x" if kind == "folder" else place
                target.write_text("ours")
                for name in ("rename", "link", "unlink"):
                    patched.setattr(os, name, then_interrupt(getattr(os, name)))
                patched.setattr(writer, "exchange", then_interrupt(writer.exchange))
                taking = then_interrupt(writer.rename_exclusive)
                patched.setattr(writer, "rename_exclusive", taking)
                patched.setattr(writer, "sync_all", lambda _: None)
        except KeyboardInterrupt:
            return True
        finally:
            patched.undo()
        return False

    if there:
        out.write_text("mine")
    for number in range(8):
        if not attempt(number):
            break
        assert out.exists() == there
        assert not there or out.read_text() == "mine"
    assert 0 < number < 7
    with staged(out, force="any") as place:
        fill(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_an_output_whose_name_does_not_reach_the_disk_is_taken_back(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(writer, "sync", refuse)
    with pytest.raises(OSError, match="Input/output"), staged(tmp_path / "out") as place:
        fill(place)
    assert list(tmp_path.iterdir()) == []


def come_up(out: Path, kind: str, *, force: bool) -> None:
    """Let something come up at an output while it is written."""
    with staged(out, force=force) as place:
        fill(place)
        if kind == "file":
            out.write_text("mine")
        elif kind == "link":
            out.symlink_to("elsewhere")
        else:
            out.mkdir()
        if kind == "folder":
            (out / "mine").write_text("mine")


@pytest.mark.parametrize(
    ("kind", "force"),
    [
        ("folder", False),
        ("folder", True),
        ("file", False),
        ("file", True),
        ("empty folder", False),
        ("link", False),
    ],
)
def test_what_came_up_meanwhile_is_not_lost(tmp_path, kind, force):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"out: (exists already|does not look)"):
        come_up(out, kind, force=force)
    assert not (out / "x.safetensors").exists()
    assert kind != "folder" or (out / "mine").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["empty folder", "link"])
def test_with_force_what_came_up_meanwhile_and_holds_nothing_is_replaced(tmp_path, kind):
    come_up(tmp_path / "out", kind, force=True)
    assert (tmp_path / "out" / "x.safetensors").read_bytes() == save(TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_came_up_meanwhile_is_not_lost(tmp_path, force):
    file = tmp_path / "out.html"

    def come_up() -> None:
        with staged_file(file, force=force) as place:
            place.write_text("ours")
            file.write_text("mine")

    with pytest.raises(OutputError):
        come_up()
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]


def test_what_came_up_between_look_and_swap_is_not_lost(old, monkeypatch):
    """Another program puts its own folder in the place of an output that may be replaced."""
    real = writer.exchange

    def exchange(a: Path, b: Path) -> None:
        monkeypatch.setattr(writer, "exchange", real)
        (b / REPORT).rename(b / "precious")
        real(a, b)

    monkeypatch.setattr(writer, "exchange", exchange)
    with pytest.raises(OutputError, match="does not look like"), staged(old, force=True) as place:
        fill(place)
    assert [path.name for path in old.iterdir()] == ["precious"]
    assert [path.name for path in old.parent.iterdir()] == ["out"]


def test_only_one_of_two_writes(tmp_path):
    with staged(tmp_path / "out") as place:
        fill(place)
        with pytest.raises(OutputError, match="another process"), staged(tmp_path / "out"):
            pytest.fail("entered")
    assert (tmp_path / "out" / "x.safetensors").read_bytes() == save(TENSORS)


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    out, synced, fsync = tmp_path / "out", {}, os.fsync

    def watch(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced[path] = (path.stat().st_size, out.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with staged(out) as place:
        fill(place)
        (place / "side").write_text("side")
        inner = [place, *place.iterdir()]
        sizes = {path: path.stat().st_size for path in inner}
    assert {path: synced[path] for path in inner} == {p: (sizes[p], False) for p in inner}
    assert synced[tmp_path][1]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with staged(tmp_path / "out") as place:
            fill(place)
            assert place.parent.stat().st_mode & 0o077 == 0
        with staged_file(tmp_path / "file") as place:
            place.write_text("")
    finally:
        os.umask(before)
    found = [tmp_path / "out", tmp_path / "out" / "x.safetensors", tmp_path / "file"]
    modes = [path.stat().st_mode & 0o777 for path in found]
    assert modes == [0o777 & ~mask, 0o666 & ~mask, 0o666 & ~mask]


@pytest.mark.parametrize(("theirs", "ours"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644)])
def test_a_result_is_as_private_as_its_sources(tmp_path, theirs, ours):
    sources = [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]
    for source in sources[:2]:
        source.write_text("")
        source.chmod(0o644)
    sources[1].chmod(theirs)
    before = os.umask(0o022)
    try:
        with staged(tmp_path / "out", sources=sources) as place:
            fill(place)
        with staged_file(tmp_path / "file", sources=sources) as place:
            place.write_text("")
    finally:
        os.umask(before)
    for path in (tmp_path / "out" / "x.safetensors", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == ours


@pytest.mark.parametrize("precious", [".git", "src", "mine.txt"])
def test_force_replaces_only_what_looks_like_an_output(tmp_path, precious):
    out = tmp_path / "out"
    out.mkdir()
    if precious != "mine.txt":
        (out / REPORT).write_text("{}")
        (out / precious).mkdir()
    else:
        (out / precious).write_text("precious")
    with pytest.raises(OutputError, match="does not look like") as caught:
        check_output(out, {}, force=True)
    assert precious in str(caught.value) or REPORT in str(caught.value)
    assert "--force-any" in caught.value.__notes__[0]
    with pytest.raises(OutputError, match="does not look like"), staged(out, force=True):
        pytest.fail("entered")
    with staged(out, force="any") as place:
        fill(place)
    assert [path.name for path in out.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", "", ".ä"])
def test_the_longest_name_will_do(tmp_path, suffix):
    out = tmp_path / ("x" * (255 - len(suffix.encode())) + suffix)
    with staged(out) as place:
        fill(place)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(OSError, match="too long"), staged(tmp_path / ("x" * 256)):
        pytest.fail("entered")


def test_links_in_a_circle_are_said_so(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for out in (tmp_path / "a", tmp_path / "a" / "out"):
        with pytest.raises(OutputError, match=r"leads? in a circle"):
            check_output(out, {}, force=False)
    with pytest.raises(OutputError, match="exists already"), staged(tmp_path / "a"):
        pytest.fail("entered")


@pytest.mark.parametrize("out", ["/", "."])
def test_a_place_without_a_name_is_refused(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError), staged(Path(out), force=True):
        pytest.fail("entered")


def test_a_full_disk_names_the_file_and_its_room(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    stated = r"x\.safetensors: No space left .* MB are free"
    with pytest.raises(DiskError, match=stated) as caught, staged(tmp_path / "out") as place:
        fill(place)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__notes__


def test_an_existing_file_is_replaced(tmp_path):
    (tmp_path / "out").write_bytes(save(TENSORS))
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
    assert (old / REPORT).read_text() == "mine"
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
    with pytest.raises(FileNotFoundError), staged_file(file, force="any") as place:
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
