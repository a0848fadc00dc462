"""Numbers as a file will hold them: rounded once, and widened again to compute with."""

from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg import bfloat, half
from lora_tools.shapes import Float
from lora_tools.update import Array


class Stored(NamedTuple):
    """An array in its stored type, and the same numbers in a type that numpy computes with."""

    bits: Array
    """Elements as the file has them; those of bfloat16 as their bits, in uint16."""
    wide: Float[np.ndarray, "..."]


def rounded(array: Float[np.ndarray, "..."], code: str) -> Stored:
    """Round an array to a type of safetensors: F64, F32, F16 or BF16.

    Raises `NonFiniteError` if the type cannot hold the numbers.
    """
    array = np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # what overflows is refused below
        single = array.astype(np.float32, copy=False)
    match code:
        case "F64":
            result = Stored(array.astype(np.float64), array.astype(np.float64))
        case "F16":
            bits = half.narrow(single)
            result = Stored(bits, half.widen(bits))
        case "BF16":
            bits = bfloat.narrow(single)
            result = Stored(bits, bfloat.widen(bits))
        case _:
            result = Stored(single, single)
    if not np.isfinite(result.wide).all():
        raise NonFiniteError(f"values exceed the range of {code}")
    return result


def widened(bits: Array, code: str) -> Float[np.ndarray, "..."]:
    """Return elements as a file has them in a type that numpy computes with, exactly."""
    match code:
        case "F16":
            return half.widen(bits)
        case "BF16":
            return bfloat.widen(bits)
        case _:
            return np.asarray(bits)
