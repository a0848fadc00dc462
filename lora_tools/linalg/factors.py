"""Products with tall factors: the only mathematics that touches more than r x r numbers.

Numpy computes them on the host, which spares a process the second that importing torch takes;
torch computes them on devices and for the dtypes that numpy lacks. Everything r x r is a
float64 array of numpy, whichever computed it.
"""

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact, tensor
from lora_tools.linalg.half import narrow, widen
from lora_tools.linalg.rounding import rounded_tensor
from lora_tools.shapes import Float, Int
from lora_tools.update import Array, LowRank

if TYPE_CHECKING:
    from torch import Tensor

Small = np.ndarray
"""A float64 matrix, or a stack of them, with r rows or columns."""

FAR = 200
"""Powers of two up to which products of four numbers, and their digits, stay in float64's range."""

DIGITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Significant binary digits."""


@runtime_checkable
class Factor(Protocol):
    """A factor with few columns, or a stack of them: B, or the transpose of A."""

    array: Array
    wide: Array
    """The factor in float64. Made at once: threads would wait for each other at a lazy one."""

    def dot(self, other: "Factor") -> Float[Small, "*stack m n"]:
        """Return ``self.T @ other``, in float64."""
        ...

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> "Factor":
        """Return ``self @ small``, rounded once to ``dtype``."""
        ...

    def scaled(self, ratio: float, dtype: str) -> tuple["Factor", bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact, to float64."""
        ...

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        ...

    def lengths(self) -> Float[Small, "*stack n"]:
        """Return the largest magnitude in each column; 0 where there are no rows."""
        ...

    def shifted(self, powers: Int[np.ndarray, "*stack n"]) -> "Factor":
        """Return the factor in float64, each column times 2 to its power."""
        ...


class HostFactor:
    """A factor in an array of numpy."""

    def __init__(self, array: Float[np.ndarray, "*stack m n"]) -> None:
        self.array = array
        self.single = widen(array) if array.dtype == np.float16 else array
        """The factor in float32, if that holds it, or else as it is."""
        self.wide = self.single.astype(np.float64, copy=False)
        """The factor in float64."""

    def dot(self, other: Factor) -> Float[Small, "*stack k n"]:
        """Return ``self.T @ other``; of a factor with itself, at half the cost."""
        product: Small = self.wide.swapaxes(-1, -2) @ np.asarray(other.wide)
        return product

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> Factor:
        """Return ``self @ small``: in float32 where ``dtype`` is coarser, else in float64."""
        if dtype == "float16" and self.single.dtype == np.float32:
            return HostFactor(narrow(self.single @ small.astype(np.float32)))
        return _rounded(self.wide @ small, dtype)

    def scaled(self, ratio: float, dtype: str) -> tuple[Factor, bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact."""
        if ratio == 1.0 and self.array.dtype.name == dtype:
            return self, True
        with np.errstate(over="ignore", invalid="ignore"):  # whoever asked checks for Inf
            product = self.wide * ratio
            kept = _lossless(self.array.dtype.name, ratio) and np.array_equal(
                product / ratio, self.wide
            )
            result = _rounded(product, dtype)
        return result, kept and bool(np.array_equal(np.asarray(result.wide), product))

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        return bool(np.isfinite(self.array).all())

    def lengths(self) -> Float[Small, "*stack n"]:
        """Return the largest magnitude in each column."""
        highest: Small = np.abs(self.wide).max(-2, initial=0.0)
        return highest

    def shifted(self, powers: Int[np.ndarray, "*stack n"]) -> Factor:
        """Return the factor in float64, each column times 2 to its power."""
        return HostFactor(np.ldexp(self.wide, powers[..., None, :]))


class TorchFactor:
    """A factor in a tensor of torch, on any device."""

    def __init__(self, array: "Tensor") -> None:
        self.array = array
        # Apple's GPUs have no float64; and every narrower type widens fastest by float32.
        tensor = array.cpu() if array.device.type == "mps" else array
        self.wide = tensor.double() if tensor.dtype.itemsize == 8 else tensor.float().double()
        """The factor in float64, on the host if its device has none."""

    def dot(self, other: Factor) -> Float[Small, "*stack k n"]:
        """Return ``self.T @ other``."""
        if isinstance(other, HostFactor):
            return HostFactor(self.wide.cpu().numpy()).dot(other)
        with exact():
            product: Small = (self.wide.mT @ other.wide).cpu().numpy()
        return product

    def times(self, small: Float[Small, "*stack n k"], dtype: str) -> Factor:
        """Return ``self @ small``: in float32 where ``dtype`` is coarser, else in float64."""
        import torch

        wanted: torch.dtype = getattr(torch, dtype)
        source = self.array.float() if wanted.itemsize < 4 else self.wide
        with exact():
            product = source @ tensor(small).to(source)
        return TorchFactor(product.to(self.array.device, wanted))

    def scaled(self, ratio: float, dtype: str) -> tuple[Factor, bool]:
        """Return ``self * ratio`` in ``dtype``, and whether that is exact."""
        import torch

        wanted: torch.dtype = getattr(torch, dtype)
        if ratio == 1.0 and self.array.dtype == wanted:
            return self, True
        product = self.wide * ratio
        result = rounded_tensor(product, wanted)
        name = str(self.array.dtype).removeprefix("torch.")
        kept = _lossless(name, ratio) and torch.equal(product / ratio, self.wide)
        same = torch.equal(result.to(product), product)
        return TorchFactor(result.to(self.array.device)), kept and same

    def is_finite(self) -> bool:
        """Whether the factor holds neither NaN nor Inf."""
        return bool(self.array.isfinite().all())

    def lengths(self) -> Float[Small, "*stack n"]:
        """Return the largest magnitude in each column."""
        if not self.wide.shape[-2]:
            return np.zeros((*self.wide.shape[:-2], self.wide.shape[-1]))
        highest: Small = self.wide.abs().amax(-2).cpu().numpy()
        return highest

    def shifted(self, powers: Int[np.ndarray, "*stack n"]) -> Factor:
        """Return the factor in float64, each column times 2 to its power."""
        half = powers // 2  # twice, since float64 lacks the power that brings a subnormal to 1
        result = self.wide
        for power in (half, powers - half):
            result = result * tensor(np.ldexp(1.0, power)[..., None, :]).to(result)
        return TorchFactor(result)


class Factors(NamedTuple):
    """The factors of an update, ready to compute with: ``scale * b @ a.T``."""

    b: Factor
    a: Factor
    """The transpose of A."""
    scale: float


def as_factor(array: Array) -> Factor:
    """Return a factor that computes where its array lives."""
    return HostFactor(array) if isinstance(array, np.ndarray) else TorchFactor(array)


def host(array: Array) -> Float[np.ndarray, "..."]:
    """Return an array of either library, on any device, as numpy's in float64."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    result: np.ndarray = array.detach().cpu().double().numpy()
    return result


def factors_of(update: LowRank) -> Factors:
    """Widen the factors of an update, once for all that is computed from them.

    Where float64 could not hold products of their squares, powers of two go from each column of B
    to its row of A and into the scale, which changes no digit. Raises `NonFiniteError` for a scale
    that is no number, or that float64 cannot tell from 0.
    """
    b, a = as_factor(update.b), as_factor(update.a.swapaxes(-1, -2))
    scale = update.scale
    if not math.isfinite(scale) or (update.alpha and not scale):
        raise NonFiniteError(f"alpha {update.alpha:g} at rank {update.rank} makes no scale")
    if b.wide.dtype == b.array.dtype or a.wide.dtype == a.array.dtype:  # float32 cannot be so far
        return _balanced(b, a, scale)
    return Factors(b, a, scale)


def _balanced(b: Factor, a: Factor, scale: float) -> Factors:
    lengths = b.lengths(), a.lengths()
    (_, high_b), (_, high_a) = (np.frexp(length) for length in lengths)
    near = all(np.abs(high).max(initial=0) <= FAR for high in (high_b, high_a))
    if near or not all(np.isfinite(length).all() for length in lengths):
        return Factors(b, a, scale)  # whoever computes with Inf or NaN sees it
    live = (lengths[0] > 0) & (lengths[1] > 0)
    both = high_b + high_a
    top = int(both[live].max(initial=-4096)) if live.any() else 0
    below = np.where(live, both - top, 0)  # each product of a column and a row, beside the largest
    half = below // 2
    return Factors(b.shifted(half - high_b), a.shifted(below - half - high_a), _times(scale, top))


def _times(scale: float, power: int) -> float:
    """Return ``scale * 2 ** power``, or Inf where float64 ends."""
    try:
        return math.ldexp(scale, power)
    except OverflowError:
        return math.copysign(math.inf, scale)


def padded(array: Float[Array, "*stack m n"], columns: int) -> Float[Array, "*stack m more"]:
    """Return an array with columns of zeros appended."""
    if not columns:
        return array
    if isinstance(array, np.ndarray):
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, columns)])
    from torch.nn.functional import pad

    return pad(array, (0, columns))


def _lossless(kind: str, ratio: float) -> bool:
    """Whether float64 holds the products of a type's numbers and a ratio, but for their range."""
    count, _ = math.frexp(ratio)[0].as_integer_ratio()
    digits = abs(count).bit_length()
    return digits == 1 or digits + DIGITS[kind] <= DIGITS["float64"]


def _rounded(product: Float[np.ndarray, "*stack m n"], dtype: str) -> Factor:
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # whoever asked checks for Inf
            return HostFactor(product.astype(dtype))
    import torch  # numpy has no bfloat16

    return TorchFactor(rounded_tensor(torch.from_numpy(product), torch.bfloat16))
