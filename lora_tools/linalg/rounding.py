"""The one rounding to a stored type: to nearest, ties to even, whatever it is rounded from.

A float64 that goes to a half type by way of float32 is rounded twice, and where the first rounding
makes a tie of it the second one errs. So its way leads through few digits whose last is odd.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg import half
from lora_tools.linalg.stored import KINDS
from lora_tools.shapes import Float
from lora_tools.update import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLICE = 1 << 15
"""Elements that are rounded at a time: with what lies between, they stay in a core's cache."""

LOST = (1 << 37) - 1
"""The bits of a float64 behind its 16 leading digits.

Sixteen are two more than float16 and bfloat16 need to be rounded rightly from, and few enough for
float32 to hold them wherever bfloat16 is subnormal.
"""


class Stored(NamedTuple):
    """An array in its stored type, and the same numbers in a type that numpy computes with."""

    bits: Array
    """Elements as the file has them; those of bfloat16 as their bits, in uint16."""
    wide: Float[np.ndarray, "..."]


def rounded(array: Float[np.ndarray, "..."], code: str) -> Stored:
    """Round an array to a type of safetensors: F64, F32, F16 or BF16.

    Raises `NonFiniteError` if the type cannot hold the numbers.
    """
    kind = np.dtype(KINDS[code])
    if array.dtype == kind:
        result = Stored(array, array)
    else:
        array = np.ascontiguousarray(array)
        bits = np.empty(array.shape, kind)
        wide = bits if kind.itemsize > 2 else np.empty(array.shape, np.float32)
        flat, raw, back = array.reshape(-1), bits.reshape(-1).view(np.uint8), wide.reshape(-1)
        for start in range(0, array.size, SLICE):
            some = slice(start, start + SLICE)
            here = slice(start * kind.itemsize, (start + SLICE) * kind.itemsize)
            round_into(flat[some], code, raw[here], back[some])
        result = Stored(bits, wide)
    if not np.isfinite(result.wide).all():
        raise NonFiniteError(f"values exceed the range of {code}")
    return result


def round_into(
    wide: Float[np.ndarray, "n"], code: str, out: np.ndarray, back: Float[np.ndarray, "n"]
) -> None:
    """Fill the bytes ``out`` with ``wide``, rounded.

    ``back`` gets the numbers that those bytes hold. Its type is one that can hold them.
    """
    stored = out.view(KINDS[code])
    match code:
        case "BF16":
            bits = back.view(np.uint32) if back.dtype == np.float32 else np.empty(wide.size, "u4")
            _round_bits(single(wide).view(np.uint32), bits)
            np.right_shift(bits, 16, out=stored, casting="unsafe")
            if back.dtype != np.float32:
                np.copyto(back, bits.view(np.float32))
        case "F16":
            np.copyto(stored, half.narrow(single(wide)))
            np.copyto(back, half.widen(stored))
        case _:
            with np.errstate(over="ignore"):  # who rounds checks for Inf
                np.copyto(stored, wide, casting="same_kind")
            np.copyto(back, stored)


def single(wide: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Return float32 numbers that round to a half type as ``wide`` does, float32 or float64."""
    if wide.dtype == np.float32:
        return wide
    with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN stay what they are
        result: np.ndarray = odd(wide.view(np.int64)).view(np.float64).astype(np.float32)
        return result


def odd(bits: Array) -> Array:
    """Cut the bits of float64 numbers after 16 digits, the last set wherever anything is lost.

    A later rounding to fewer digits then gives what one rounding would have given
    (Boldo and Melquiond 2008): the set bit keeps what was lost from being taken for a tie.
    Takes integers of numpy and of torch; an infinity stays one, and a NaN stays NaN.

    >>> numbers = np.array([1.0, 1 + 2**-40, -1 - 2**-15])
    >>> [x.hex() for x in odd(numbers.view(np.int64)).view(np.float64)]
    ['0x1.0000000000000p+0', '0x1.0002000000000p+0', '-0x1.0002000000000p+0']
    """
    kept = bits & LOST
    kept += LOST  # carries into the last digit unless nothing is lost
    kept |= bits
    kept &= ~LOST
    return kept


def _round_bits(bits: np.ndarray, out: np.ndarray) -> None:
    """Round the bits of float32 at the 16th, which is where bfloat16 ends.

    Integer arithmetic in numpy: importing torch for it would take longer than the rounding of ten
    gigabytes.
    """
    np.right_shift(bits, 16, out=out)
    out &= 1
    out += 0x7FFF
    out += bits
    out &= 0xFFFF0000
    if np.isnan(bits.view(np.float32).max(initial=0)):  # the carry may turn NaN into zero
        nan = np.isnan(bits.view(np.float32))
        out[nan] = bits[nan] & 0xFFFF0000 | 0x400000


def rounded_tensor(wide: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Return a tensor rounded to a type of torch, on its device."""
    import torch

    if wide.dtype == torch.float64 and dtype.itemsize == 2:
        wide = odd(wide.contiguous().view(torch.int64)).view(torch.float64)
    return wide.to(dtype)
