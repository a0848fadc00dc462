"""The norms that can be measured: float64 holds their squares, and those of their last digits."""

from lora_tools.errors import NonFiniteError

LEAST, MOST = 2.0**-400, 2.0**400
"""From 4e-121 to 3e120. An adapter that trains and serves is nowhere near either."""


def check_measurable(norm: float, scale: float = 1.0) -> None:
    """Raise `NonFiniteError` if ``norm * scale`` is no number, or has no square in float64.

    Zero has one.

    >>> check_measurable(1.0), check_measurable(0.0)
    (None, None)
    >>> check_measurable(1e-200)
    Traceback (most recent call last):
    lora_tools.errors.NonFiniteError: its norm of 1e-200 is too small to be squared in float64
    """
    value = norm * abs(scale)
    if LEAST <= value <= MOST or not (norm and scale):
        return
    if value != value or value == float("inf"):
        raise NonFiniteError(
            "its numbers, or their products, are too large to be squared in float64"
        )
    size = "large" if value > MOST else "small"
    raise NonFiniteError(f"its norm of {value:.3g} is too {size} to be squared in float64")
