"""Stored numbers and the wider ones that are computed with: exact one way, one rounding the other.

On the host a stored tensor is its bytes: numpy has no bfloat16, so torch converts that one.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_tools.linalg.half import narrow
from lora_tools.shapes import Float

if TYPE_CHECKING:
    from torch import Tensor

NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
WIDTH = {"F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Bytes per element of the types that numbers can be added to."""

DIGITS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Significant binary digits."""

LEAST = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}
"""Exponent of the smallest normal number."""


def accumulator(target: str) -> type[np.floating[Any]]:
    """Return the type in which sums for ``target`` are formed.

    Twice the digits of the target and some: float32 for bfloat16. Sums in float32 for float16 would
    round one element in ten thousand wrongly, so that and all else is added in float64.
    """
    return np.float32 if target == "BF16" else np.float64


def widen(raw: np.ndarray, code: str, out: Float[np.ndarray, "n"]) -> None:
    """Fill ``out`` with the numbers that the bytes ``raw`` hold; exact."""
    if code in NUMPY:
        np.copyto(out, raw.view(NUMPY[code]))
    elif code == "BF16":
        single = out if out.dtype == np.float32 else np.empty(out.size, np.float32)
        np.left_shift(raw.view(np.uint16), 16, out=single.view(np.uint32), dtype=np.uint32)
        if single is not out:
            np.copyto(out, single)
    else:
        import torch  # float8

        names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
        torch.from_numpy(out).copy_(torch.from_numpy(raw).view(getattr(torch, names[code])))


def rounded(
    wide: Float[np.ndarray, "n"], code: str, out: np.ndarray, back: Float[np.ndarray, "n"]
) -> None:
    """Fill the bytes ``out`` with ``wide``, rounded once: to nearest, ties to even.

    ``back`` gets the numbers that those bytes hold. It has the type of ``wide``.
    """
    single = odd(wide) if wide.dtype == np.float64 and code in ("F16", "BF16") else wide
    if code == "BF16":
        bits = back.view(np.uint32) if back.dtype == np.float32 else np.empty(out.size // 2, "u4")
        _round_bits(single.view(np.uint32), bits)
        np.right_shift(bits, 16, out=out.view(np.uint16), casting="unsafe")
        if back.dtype != np.float32:
            np.copyto(back, bits.view(np.float32))
        return
    stored = out.view(NUMPY[code])
    with np.errstate(over="ignore"):  # whoever adds checks for Inf
        np.copyto(stored, narrow(single) if code == "F16" else single, casting="same_kind")
    np.copyto(back, stored)


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


def odd(wide: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Round float64 to float32 towards zero, the last bit set wherever that is not exact.

    A later rounding to fewer digits then gives what one rounding would have given
    (Boldo and Melquiond 2008): the set bit keeps what was lost from being taken for a tie.

    >>> odd(np.array([1.0, 1 + 2**-40])).view(np.uint32) & 1
    array([0, 1], dtype=uint32)
    """
    with np.errstate(over="ignore"):
        single = wide.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.uint32)
    bits -= np.abs(back) > np.abs(wide)
    bits |= (back != wide) & ~np.isnan(wide)
    return single


def rounded_tensor(wide: "Tensor", code: str) -> "Tensor":
    """Return ``wide`` rounded once to a type, on its device."""
    import torch

    target: torch.dtype = {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
    }[code]
    if wide.dtype != torch.float64 or target.itemsize > 2:
        return wide.to(target)
    single = wide.float()
    back = single.double()
    bits = single.view(torch.int32)
    bits -= (back.abs() > wide.abs()).int()
    bits |= ((back != wide) & ~wide.isnan()).int()
    return single.to(target)


def spacing(value: Float[np.ndarray, "n"], code: str) -> Float[np.ndarray, "n"]:
    """Return the distance of neighbouring numbers of a type at these values, in float64."""
    _, exponent = np.frexp(np.abs(value))
    exponent = np.maximum(exponent - 1, LEAST[code])
    result: Float[np.ndarray, n] = np.ldexp(1.0, exponent - (DIGITS[code] - 1))
    return result
