"""A GPU for machines without one: tensors of the host that behave as if they lay on a device.

Inside the context, ``tensor.to("cuda")`` hands out a `DeviceTensor` that says ``cuda:0`` and holds
an ordinary tensor. A call of torch's with one is refused where a device would refuse it, and
computed by the host's kernels otherwise: no tensor of the host with dimensions takes part, nothing
becomes an array of numpy but by way of ``.cpu()``, and kernels refuse types that the device lacks.
What it cannot show: speed, streams, the order of a device's sums.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LINALG = ("linalg_", "_linalg_", "geqrf", "cholesky")
MAY_MIX = {"copy_", "__setitem__", "__getitem__", "to", "type_as"}
MOVES = {"to", "cpu", "cuda"}
TO_NUMPY = {"numpy", "__array__", "__array_wrap__", "__dlpack__"}


def tf32(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply as tensor cores may: from 10 digits behind the first, summed in float32."""
    return torch.matmul(*(_ten_digits(each) for each in (x, y)))


def as_set(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply as torch's settings of the moment say."""
    return (torch.matmul if torch.get_float32_matmul_precision() == "highest" else tf32)(x, y)


@dataclass
class Count:
    """What the device was asked to do."""

    up: int = 0
    """Copies from the host."""
    down: int = 0
    ops: Counter[str] = field(default_factory=Counter)


class DeviceTensor(torch.Tensor):
    """A tensor on the device; ``inner`` has its numbers."""

    inner: torch.Tensor
    home: "FakeDevice"

    @staticmethod
    def __new__(cls, inner: torch.Tensor, home: "FakeDevice") -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=home.device,
        )
        made.inner, made.home = inner, home
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_flatten((args, kwargs or {}))[0]
        home = next(leaf.home for leaf in leaves if isinstance(leaf, DeviceTensor))
        return home.call(func, args, kwargs or {}, leaves)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} reached the fake device from inside of torch")


class FakeDevice:
    """A device of the name ``cuda:N`` or ``mps:0``, for as long as the context lasts."""

    def __init__(self, name: str = "cuda:0", products: Product = as_set) -> None:
        self.device = torch.device(name if ":" in name else f"{name}:0")
        self.products = products
        """How matrices of float32 are multiplied."""
        self.count = Count()

    def __enter__(self) -> "FakeDevice":
        self._patched = self._patches()
        self._patched.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._patched.__exit__(*error)

    @contextmanager
    def _patches(self) -> Iterator[None]:
        to = torch.Tensor.to

        def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            device = _destination(args, kwargs)[0]
            mine = device is not None and device.type == self.device.type
            if isinstance(tensor, DeviceTensor) or not mine:
                return to(tensor, *args, **kwargs)
            return self._move("to", (tensor, *args), kwargs)

        moved.__name__ = "to"  # torch's own dispatch looks the method up under its name
        cuda = int(self.device.type == "cuda")
        count = cuda * ((self.device.index or 0) + 1)
        with (
            patch.object(torch.Tensor, "to", moved),
            patch.object(torch.cuda, "device_count", lambda: count),
            patch.object(torch.cuda, "is_available", lambda: bool(cuda)),
            patch.object(torch.backends.mps, "is_available", lambda: not cuda),
        ):
            yield

    def call(self, func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> Any:
        """Do a call of torch's interface that a tensor of the device takes part in."""
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._attribute(func, args)
        if name in TO_NUMPY:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        if name == "__repr__":
            return f"DeviceTensor({tuple(args[0].inner.shape)}, {self.device})"
        if name in MOVES:
            return self._move(name, args, kwargs)
        self._check(name, leaves)
        with _Kernels(self):
            result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        return self._wrapped(result, leaves)

    def _attribute(self, func: Any, args: Any) -> Any:
        name = func.__self__.__name__
        if name == "device":
            return self.device
        if name in ("is_cuda", "is_mps", "is_cpu"):
            return name == f"is_{self.device.type}"
        return self._wrapped(func(args[0].inner), [args[0]])

    def _move(self, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        source, rest = args[0], args[1:]
        device, dtype = (torch.device("cpu"), None) if name == "cpu" else (self.device, None)
        if name == "to":
            device, dtype = _destination(rest, kwargs)
        if device is not None and device.index not in (None, self.device.index):
            raise RuntimeError(
                f"{device}: invalid device ordinal: tensors here are on {self.device}"
            )
        inner = _inner(source)
        away = device is not None and device.type == "cpu"
        if not isinstance(source, DeviceTensor):
            self.count.up += 1
        elif away:
            self.count.down += 1
        elif dtype in (None, inner.dtype):
            return source
        copy = inner.clone() if dtype is None else inner.to(dtype, copy=True)
        return copy if away else self._keep(copy)

    def _keep(self, tensor: torch.Tensor) -> DeviceTensor:
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return DeviceTensor(tensor, self)

    def _wrapped(self, result: Any, leaves: list[Any]) -> Any:
        known = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, DeviceTensor)}

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, DeviceTensor):
                return value
            same = known.get(id(value))
            return self._keep(value) if same is None else same

        return wrap(result) if isinstance(result, torch.Tensor) else tree_map(wrap, result)

    def _check(self, name: str, leaves: list[Any]) -> None:
        for leaf in leaves:
            if isinstance(leaf, np.ndarray) and leaf.ndim:
                raise TypeError(f"{name}: an array of numpy meets a tensor on {self.device}")
            host = isinstance(leaf, torch.Tensor) and not isinstance(leaf, DeviceTensor)
            if host and leaf.ndim and name not in MAY_MIX:
                raise RuntimeError(f"{name}: tensors on {self.device} and on the host")


class _Kernels(TorchDispatchMode):
    """Sees the operators that a call is made of: counts them, and refuses what kernels lack."""

    def __init__(self, home: FakeDevice) -> None:
        super().__init__()
        self.home = home

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        kinds = {x.dtype for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
        halves = kinds & {torch.float16, torch.bfloat16}
        if name.startswith(LINALG) and (halves or self.home.device.type == "mps"):
            raise RuntimeError(f"{name}: not implemented for {kinds} on {self.home.device}")
        self.home.count.ops[name] += 1
        if name in ("mm", "bmm") and args[0].dtype == torch.float32:
            return self.home.products(*args)
        return func(*args, **(kwargs or {}))


def _ten_digits(value: torch.Tensor) -> torch.Tensor:
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _destination(args: Any, kwargs: Any) -> tuple[torch.device | None, torch.dtype | None]:
    """Return the device and the type that arguments of ``Tensor.to`` ask for."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for each in args:
        if isinstance(each, torch.Tensor):
            return each.device, each.dtype
        if isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, str | torch.device):
            device = each
    return (None if device is None else torch.device(device)), dtype


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value
