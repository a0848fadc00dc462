"""Products with tall factors: the only mathematics that touches more than r x r numbers.

Numpy computes them on the host, which spares a process the second that importing torch takes;
torch computes them on devices and for the element types that numpy lacks. Everything r x r is a
float64 array of numpy, whichever computed it.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lora_tools.linalg.half import narrow, widen
from lora_tools.linalg.rounding import rounded_tensor
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

if TYPE_CHECKING:
    from torch import Tensor

Small = np.ndarray
"""A float64 matrix, or a stack of them, with r rows or columns."""


@runtime_checkable
class Tall(Protocol):
    """A factor with few columns, or a stack of them: B, or the transpose of A."""

    array: Array
    wide: Array
    """The factor in float64. Made at once: threads would wait for each other at a lazy one."""

    def dot(self, other: "Tall") -> Float[Small, "*stack m n"]:
        """Return ``self.T @ other``, in float64."""
        ...

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> "Tall":
        """Return ``self @ small``, rounded once to ``dtype``."""
        ...

    def scaled(self, ratio: float, dtype: str) -> tuple["Tall", bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact, to float64."""
        ...

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        ...


class HostTall:
    """A factor in an array of numpy."""

    def __init__(self, array: Float[np.ndarray, "*stack m n"]) -> None:
        self.array = array
        self.single = widen(array) if array.dtype == np.float16 else array
        """The factor in float32, if that holds it, or else as it is."""
        self.wide = self.single.astype(np.float64, copy=False)
        """The factor in float64."""

    def dot(self, other: Tall) -> Float[Small, "*stack k n"]:
        """Return ``self.T @ other``; of a factor with itself, at half the cost."""
        product: Small = self.wide.swapaxes(-1, -2) @ np.asarray(other.wide)
        return product

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> Tall:
        """Return ``self @ small``: in float32 where ``dtype`` is coarser, else in float64."""
        if dtype == "float16" and self.single.dtype == np.float32:
            return HostTall(narrow(self.single @ small.astype(np.float32)))
        return _rounded(self.wide @ small, dtype)

    def scaled(self, ratio: float, dtype: str) -> tuple[Tall, bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact."""
        if ratio == 1.0 and self.array.dtype.name == dtype:
            return self, True
        product = self.wide * ratio
        result = _rounded(product, dtype)
        return result, bool(np.array_equal(np.asarray(result.wide), product))

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        return bool(np.isfinite(self.array).all())


class TorchTall:
    """A factor in a tensor of torch, on any device."""

    def __init__(self, array: "Tensor") -> None:
        self.array = array
        # Apple's GPUs have no float64; and every narrower type widens fastest by float32.
        tensor = array.cpu() if array.device.type == "mps" else array
        self.wide = tensor.double() if tensor.dtype.itemsize == 8 else tensor.float().double()
        """The factor in float64, on the host if its device has none."""

    def dot(self, other: Tall) -> Float[Small, "*stack k n"]:
        """Return ``self.T @ other``."""
        if isinstance(other, HostTall):
            return HostTall(self.wide.cpu().numpy()).dot(other)
        product: Small = (self.wide.mT @ other.wide).cpu().numpy()
        return product

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> Tall:
        """Return ``self @ small``: in float32 where ``dtype`` is coarser, else in float64."""
        import torch

        wanted: torch.dtype = getattr(torch, dtype)
        source = self.array.float() if wanted.itemsize < 4 else self.wide
        product = source @ torch.from_numpy(np.ascontiguousarray(small)).to(source)
        return TorchTall(product.to(self.array.device, wanted))

    def scaled(self, ratio: float, dtype: str) -> tuple[Tall, bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact."""
        import torch

        wanted: torch.dtype = getattr(torch, dtype)
        if ratio == 1.0 and self.array.dtype == wanted:
            return self, True
        product = self.wide * ratio
        result = rounded_tensor(product, wanted)
        exact = torch.equal(result.to(product), product)
        return TorchTall(result.to(self.array.device)), exact

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        return bool(self.array.isfinite().all())


class Held(NamedTuple):
    """The factors of an update, ready to compute with: B, and the transpose of A."""

    b: Tall
    a: Tall


def tall(array: Array) -> Tall:
    """Return a factor that computes where its array lives."""
    return HostTall(array) if isinstance(array, np.ndarray) else TorchTall(array)


def hold(update: LowRank) -> Held:
    """Widen the factors of an update, once for all that is computed from them."""
    return Held(tall(update.b), tall(update.a.swapaxes(-1, -2)))


def padded(array: Float[Array, "*stack m n"], columns: int) -> Float[Array, "*stack m more"]:
    """Return an array with columns of zeros appended."""
    if not columns:
        return array
    if isinstance(array, np.ndarray):
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, columns)])
    from torch.nn.functional import pad

    return pad(array, (0, columns))


def _rounded(product: Float[np.ndarray, "*stack m n"], dtype: str) -> Tall:
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # whoever asked checks for Inf
            return HostTall(product.astype(dtype))
    import torch  # numpy has no bfloat16

    return TorchTall(rounded_tensor(torch.from_numpy(product), torch.bfloat16))
