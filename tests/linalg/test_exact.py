"""What torch computes has every digit, whatever was set around it, and what was set is put back."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from fake_device import FakeDevice, tf32

from lora_tools.errors import DeviceError
from lora_tools.linalg import exact as guard
from lora_tools.linalg.exact import exact, placed, tensor

Setting = Callable[[], AbstractContextManager[object]]


@contextmanager
def precision(value: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def allow_tf32() -> Iterator[None]:
    with precision("highest"):
        torch.backends.cuda.matmul.allow_tf32 = True
        yield


@contextmanager
def default_device() -> Iterator[None]:
    with torch.device("meta"):  # where numbers are lost at once
        yield


@contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip(
            "THIS PROCESSOR CANNOT FLUSH SUBNORMAL NUMBERS: the guard against it is untested"
        )
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


HOSTILE: dict[str, Setting] = {
    "medium": lambda: precision("medium"),
    "high": lambda: precision("high"),
    "allow_tf32": allow_tf32,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": default_device,
    "grad": lambda: torch.enable_grad(),
    "inference": lambda: torch.inference_mode(),
    "flushing": flushing,
}


def state() -> tuple[object, ...]:
    """Return all that the guard may change."""
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        [getattr(library, "fp32_precision", None) for library in libraries],
        [torch.is_autocast_enabled(kind) for kind in guard.KINDS],
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        guard._flushes(),
    )


@pytest.mark.parametrize("setting", HOSTILE.values(), ids=HOSTILE)
def test_inside_all_is_exact_and_outside_all_is_as_it_was(setting):
    torch.set_float32_matmul_precision("highest")  # as torch begins, said in its old way
    quiet = state()
    with setting():
        before = state()
        with exact(), exact():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not any(torch.is_autocast_enabled(kind) for kind in guard.KINDS)
            assert torch.get_default_device().type == "cpu"
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not guard._flushes()
            x = torch.full((4, 4), 1 + 2.0**-23)
            assert torch.equal(x @ torch.eye(4), x)
        assert state() == before
    assert state() == quiet


def test_an_error_inside_puts_all_back():
    with precision("medium"):
        with pytest.raises(ZeroDivisionError), exact():
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "medium"


def test_the_last_of_several_threads_puts_all_back():
    inside, leave = threading.Barrier(3), threading.Event()
    seen: list[str] = []

    def work() -> None:
        with exact():
            inside.wait()
            leave.wait()
            seen.append(torch.get_float32_matmul_precision())

    with precision("medium"):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        inside.wait()
        with exact():
            pass  # comes last, leaves first
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        for thread in threads:
            thread.join()
        assert seen == ["highest"] * 2
        assert torch.get_float32_matmul_precision() == "medium"


def test_without_torch_there_is_nothing_to_guard(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with exact():
        assert "torch" not in sys.modules


@pytest.mark.parametrize("device", ["cuda:0", "mps:0"])
def test_a_device_that_multiplies_with_fewer_digits_is_refused(device, monkeypatch):
    monkeypatch.setattr(guard, "_PROVED", set())
    with (
        FakeDevice(device, products=tf32),
        pytest.raises(DeviceError, match="fewer digits") as caught,
    ):
        placed(np.ones((2, 2), np.float32), device)
    assert "NVIDIA_TF32_OVERRIDE" in caught.value.__notes__[0]


def test_a_device_is_proved_once(monkeypatch):
    monkeypatch.setattr(guard, "_PROVED", set())
    with FakeDevice("cuda:0") as gpu:
        for _ in range(3):
            placed(np.ones((2, 2), np.float32), "cuda")
    assert gpu.count.ops["mm"] == 1


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(1, 6)[::-1],
        np.arange(6.0).reshape(6, 1)[:, ::-1],
        np.arange(6.0)[::-1].reshape(1, 6),
        np.arange(6.0).reshape(2, 3)[::-1, ::-2],
        np.broadcast_to(np.arange(3.0), (4, 3)).copy().T,
        np.zeros((0, 3)),
        np.zeros((3, 0))[::-1],
        np.array(3.0),
    ],
    ids=lambda array: f"{array.shape} {array.strides}",
)
def test_any_view_becomes_a_tensor(array):
    assert np.array_equal(tensor(array).numpy(), array)
