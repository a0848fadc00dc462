"""bfloat16 in numpy by integer arithmetic: its bits are the upper half of a float32's."""

import numpy as np

from lora_tools.shapes import Float

Bits = np.ndarray
"""The bits of bfloat16 numbers, as uint16."""


def widen(bits: Bits) -> Float[np.ndarray, "..."]:
    """Return the float32 numbers whose upper halves are ``bits``, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow(single: Float[np.ndarray, "..."]) -> Bits:
    """Return the bits of float32 numbers rounded to bfloat16: to nearest, ties to even.

    >>> hex(int(narrow(np.array([1 + 2**-8 + 2**-9], np.float32))[0]))
    '0x3f81'
    """
    bits = single.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    if not np.isfinite(single).all():  # a NaN must not be rounded up into an infinity
        np.copyto(result, np.uint16(0x7FC0), where=np.isnan(single))
    return result
