"""One guard around all that torch computes: every digit, whatever a caller or environment set.

TF32, reduced precision of float32 products, autocast and the flushing of subnormal numbers change
bytes, and break certificates whose bounds assume IEEE arithmetic. Numpy knows none of them but the
last, so a process that never imported torch pays nothing.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_tools.errors import DeviceError
from lora_tools.update import Array

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("cpu", "cuda", "mps")

TILE = 256
"""Rows of the product that proves a device: enough for the kernels that large matrices get."""


class _Precision:
    """Torch's precision of float32 products: one for the process, so the last to leave restores it.

    Whoever else multiplies in the meantime, in other threads, has all digits, too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[str | None, list[tuple[Any, str]]] = (None, [])

    def raise_(self) -> None:
        """Ask for all digits, if nobody has yet."""
        import torch

        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            # Since 2.9 each library has a setting of its own, and the old one sets them all.
            libraries = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
            own = [(x, x.fp32_precision) for x in libraries if x and hasattr(x, "fp32_precision")]
            self._before = (_asked(), own)
            torch.set_float32_matmul_precision("highest")

    def restore(self) -> None:
        """Put back what the caller had asked for, if nobody else is inside."""
        import torch

        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            old, own = self._before
            if old is not None:
                torch.set_float32_matmul_precision(old)
            for library, precision in own:
                library.fp32_precision = precision


_PRECISION = _Precision()
_PROVED: set[str] = set()


@contextmanager
def exact() -> Iterator[None]:
    """Compute with every digit inside: a context and a decorator, re-entrant, for any thread.

    On leaving, the caller has all settings back. The default dtype is left alone: nothing here
    depends on it, and other threads would see it change.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch

    with ExitStack() as stack:
        _PRECISION.raise_()
        stack.callback(_PRECISION.restore)
        stack.enter_context(torch.no_grad())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _flushes():
            torch.set_flush_denormal(False)
            stack.callback(torch.set_flush_denormal, True)
        yield


def placed(array: Array, device: str) -> "Tensor":
    """Return an array of either library on a device that multiplies float32 with every digit.

    Raises `DeviceError` where the device does not, whatever it is told.
    """
    with exact():
        if device not in _PROVED:
            _prove(device)
            _PROVED.add(device)
        result: Tensor = (tensor(array) if isinstance(array, np.ndarray) else array).to(device)
        return result


def tensor(array: np.ndarray) -> "Tensor":
    """Return an array of numpy as a tensor on the host, sharing memory where torch can.

    Numpy calls a single row contiguous whatever its stride says, and torch refuses negative ones.
    """
    import torch

    plain = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(plain.copy() if any(step < 0 for step in plain.strides) else plain)


def _prove(device: str) -> None:
    """Multiply what fewer digits get wrong: an environment variable can overrule any setting."""
    import torch

    x = torch.full((TILE, TILE), 1 + 2.0**-23, dtype=torch.float32).to(device)
    one = torch.eye(TILE, dtype=torch.float32).to(device)
    if not torch.equal((x @ one).cpu(), x.cpu()):
        raise DeviceError(f"{device}: multiplies float32 numbers with fewer digits (TF32)").hint(
            "Unset NVIDIA_TF32_OVERRIDE, or use --device cpu."
        )


def _asked() -> str | None:
    """Return the old, common setting; None where the new ones contradict it."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _flushes() -> bool:
    """Whether this thread's processor takes subnormal numbers for zero."""
    return float(np.multiply(np.float64(2.0**-1030), 0.5)) == 0
