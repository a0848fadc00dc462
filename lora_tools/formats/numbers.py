"""Numbers as files hold them: which dtypes keep them exactly."""

import math
import struct
from typing import Any

FORMATS = {"F16": "<e", "F32": "<f", "F64": "<d"}


def narrowest(value: float, preferred: str) -> str:
    """Return the dtype for a number: the preferred, if it is exact, else one that is.

    >>> narrowest(16.0, "F16"), narrowest(0.1, "F16")
    ('F16', 'F64')
    """
    candidates = (preferred, "F32", "F64")
    return next((code for code in candidates if _holds(value, code)), "F64")


def rounded(value: float) -> float:
    """Return a number as a float32 has it, infinite if it is too large for one.

    >>> rounded(16.0), rounded(0.1)
    (16.0, 0.10000000149011612)
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def widened(array: Any) -> Any:
    """Return an array of numpy's or torch's in float64."""
    return array.astype("float64") if hasattr(array, "astype") else array.double()


def _holds(value: float, code: str) -> bool:
    if code == "BF16":  # the upper half of a float32
        return _holds(value, "F32") and struct.pack("<f", value)[:2] == b"\0\0"
    if code not in FORMATS:
        return False
    try:
        return bool(struct.unpack(FORMATS[code], struct.pack(FORMATS[code], value))[0] == value)
    except (OverflowError, struct.error):
        return False
