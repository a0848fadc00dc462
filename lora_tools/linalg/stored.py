"""Stored numbers, and the wider ones that they are computed with: exact, there is no rounding here.

On the host a stored tensor is its bytes. Numpy has no bfloat16, whose bits are the upper half of a
float32's.
"""

from typing import Any

import numpy as np

from lora_tools.linalg import half
from lora_tools.shapes import Float
from lora_tools.update import Array

KINDS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
"""What numpy has elements of a type as: those of bfloat16 as their bits."""

WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
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
    if code == "BF16":
        single = out if out.dtype == np.float32 else np.empty(out.size, np.float32)
        np.left_shift(raw.view(np.uint16), 16, out=single.view(np.uint32), dtype=np.uint32)
        if single is not out:
            np.copyto(out, single)
    else:
        np.copyto(out, raw.view(KINDS[code]))


def widened(bits: Array, code: str) -> Float[np.ndarray, "..."]:
    """Return elements as a file has them in a type that numpy computes with, exactly."""
    match code:
        case "F16":
            return half.widen(bits)
        case "BF16":
            wide: np.ndarray = bits.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        case _:
            return np.asarray(bits)


def spacing(value: Float[np.ndarray, "n"], code: str) -> Float[np.ndarray, "n"]:
    """Return the distance of neighbouring numbers of a type at these values, in float64."""
    _, exponent = np.frexp(np.abs(value))
    exponent = np.maximum(exponent - 1, LEAST[code])
    result: Float[np.ndarray, n] = np.ldexp(1.0, exponent - (DIGITS[code] - 1))
    return result
