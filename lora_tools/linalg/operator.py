"""A dense matrix D as an operator: DᵀD times a few rows, in one pass over D."""

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from lora_tools.linalg.exact import exact, tensor
from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float
from lora_tools.update import Array

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 21
"""Elements of D that are multiplied at a time: few enough to stay in a core's cache."""


ROWS = 4096
"""Rows of D that a device widens at a time."""


@runtime_checkable
class Operator(Protocol):
    """A matrix that lives on the host or on a device, and its squared Frobenius norm."""

    shape: tuple[int, int]
    squared: float
    """‖D‖_F², summed in float64."""
    xp: Any
    """The library that its arrays belong to: numpy or torch."""

    def gram(self, rows: Float[Array, "w n"]) -> Float[Array, "w n"]:
        """Return ``rows @ D.T @ D`` in the type of ``rows``."""
        ...

    def columns(self, rows: Float[Array, "k n"]) -> Float[Array, "m k"]:
        """Return ``D @ rows.T`` in the type of ``rows``."""
        ...

    def rows(self, columns: Float[Array, "m k"]) -> Float[Array, "k n"]:
        """Return ``columns.T @ D`` in float64, multiplied in the type of ``columns``."""
        ...

    def inner(self) -> tuple[Float[Small, "s s"], bool]:
        """Return DDᵀ or DᵀD in float64, whichever is smaller; true if it is DDᵀ."""
        ...

    def distance(self, left: Float[np.ndarray, "m k"], right: Float[np.ndarray, "k n"]) -> float:
        """Return ``||D - left @ right||_F ** 2`` in float64, element by element."""
        ...

    def array(self, host: Float[np.ndarray, "..."], dtype: str) -> Array:
        """Bring a small array to where D is, in ``dtype``."""
        ...

    def host(self, array: Array) -> Float[np.ndarray, "..."]:
        """Bring an array to the host."""
        ...


class HostOperator:
    """A matrix in memory, multiplied by numpy in blocks of rows."""

    xp: Any = np

    def __init__(self, d: Float[np.ndarray, "m n"], squared: float | None = None) -> None:
        self.d = d
        self.shape = (d.shape[0], d.shape[1])
        self.squared = _squared(d) if squared is None else squared
        self._step = max(BLOCK // max(d.shape[1], 1), 32)

    def gram(self, rows: Float[np.ndarray, "w n"]) -> Float[np.ndarray, "w n"]:
        """Return ``rows @ D.T @ D``."""
        result = np.zeros_like(rows)
        for start in range(0, len(self.d), self._step):
            block = self._block(start, rows.dtype)
            result += (rows @ block.T) @ block
        return result

    def columns(self, rows: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "m k"]:
        """Return ``D @ rows.T``."""
        starts = range(0, len(self.d), self._step)
        return np.concatenate([self._block(s, rows.dtype) @ rows.T for s in starts])

    def rows(self, columns: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "k n"]:
        """Return ``columns.T @ D``, the blocks summed in float64."""
        result = np.zeros((columns.shape[1], self.shape[1]))
        for start in range(0, len(self.d), self._step):
            block = self._block(start, columns.dtype)
            result += columns[start : start + len(block)].T @ block
        return result

    def inner(self) -> tuple[Float[Small, "s s"], bool]:
        """Return the smaller Gram matrix."""
        m, n = self.shape
        if m <= n:
            gram = np.zeros((m, m))
            for start in range(0, n, 4096):
                block = self.d[:, start : start + 4096].astype(np.float64)
                gram += block @ block.T
            return gram, True
        gram = np.zeros((n, n))
        for start in range(0, m, 4096):
            block = self.d[start : start + 4096].astype(np.float64)
            gram += block.T @ block
        return gram, False

    def distance(self, left: Float[np.ndarray, "m k"], right: Float[np.ndarray, "k n"]) -> float:
        """Return ``||D - left @ right||_F ** 2``, a block of rows at a time."""
        total = 0.0
        for start in range(0, len(self.d), self._step):
            rest = self._block(start, np.float64) - left[start : start + self._step] @ right
            total += float(np.vdot(rest, rest))
        return total

    def array(self, host: Float[np.ndarray, "..."], dtype: str) -> Array:
        """Return the array in ``dtype``."""
        return np.ascontiguousarray(host, dtype=dtype)

    def host(self, array: Array) -> Float[np.ndarray, "..."]:
        """Return the array itself."""
        return np.asarray(array)

    def _block(self, start: int, dtype: Any) -> Float[np.ndarray, "_ n"]:
        return self.d[start : start + self._step].astype(dtype, copy=False)


class TorchOperator:
    """A matrix on a device, multiplied by torch in one go."""

    def __init__(self, d: "Tensor", squared: float | None = None) -> None:
        import torch  # the host computes without it

        self.xp: Any = torch
        self.d = d
        self.shape = (d.shape[0], d.shape[1])
        if squared is None:
            parts = (d[start : start + ROWS] for start in range(0, len(d), ROWS))
            squared = math.fsum(float(part.double().square().sum()) for part in parts)
        self.squared = squared

    def gram(self, rows: "Tensor") -> "Tensor":
        """Return ``rows @ D.T @ D``."""
        d = self.d.to(rows.dtype)
        return (rows @ d.mT) @ d

    def columns(self, rows: "Tensor") -> "Tensor":
        """Return ``D @ rows.T``."""
        return self.d.to(rows.dtype) @ rows.mT

    def rows(self, columns: "Tensor") -> "Tensor":
        """Return ``columns.T @ D`` in float64."""
        return (columns.mT @ self.d.to(columns.dtype)).double()

    def inner(self) -> tuple[Float[Small, "s s"], bool]:
        """Return the smaller Gram matrix."""
        d = self.d.double()
        left = self.shape[0] <= self.shape[1]
        gram = d @ d.mT if left else d.mT @ d
        return gram.cpu().numpy(), left

    def distance(self, left: Float[np.ndarray, "m k"], right: Float[np.ndarray, "k n"]) -> float:
        """Return ``||D - left @ right||_F ** 2``, a block of rows at a time."""
        total, high = 0.0, self.array(right, "float64")
        for start in range(0, len(self.d), ROWS):
            low = self.array(left[start : start + ROWS], "float64")
            total += float((self.d[start : start + ROWS].double() - low @ high).square().sum())
        return total

    def array(self, host: Float[np.ndarray, "..."], dtype: str) -> Array:
        """Copy an array to the device."""
        kind = getattr(self.xp, dtype)
        return tensor(host).to(self.d.device, kind)

    def host(self, array: Array) -> Float[np.ndarray, "..."]:
        """Copy an array to the host."""
        return np.asarray(array.cpu().numpy())


@exact()
def operator(d: Array, squared: float | None = None) -> Operator:
    """Return a matrix as an operator, computing where it lives; ``squared`` if known already."""
    return HostOperator(d, squared) if isinstance(d, np.ndarray) else TorchOperator(d, squared)


def _squared(d: Float[np.ndarray, "m n"]) -> float:
    step = max(BLOCK // max(d.shape[1], 1), 1)
    blocks = (d[start : start + step].astype(np.float64) for start in range(0, len(d), step))
    return float(sum(np.vdot(block, block) for block in blocks))
