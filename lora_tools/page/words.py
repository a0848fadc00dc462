"""Numbers as people read them."""

import math
from collections.abc import Iterable

from lora_tools.report import percent, size

NONE = "–"


def number(value: float | None) -> str:
    """Write a number with four digits; a dash if there is none.

    >>> number(0.123456), number(4.0), number(1234567.0), number(2e-7), number(None)
    ('0.1235', '4', '1,234,567', '2e-07', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def short(value: float | None) -> str:
    """Write a large number in thousands, millions or milliards.

    >>> short(950), short(41_943_040), short(7.24e9)
    ('950', '41.9 M', '7.24 G')
    """
    if value is None:
        return NONE
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return number(value)


def share(value: float | None) -> str:
    """Write a share in percent; a dash if there is none."""
    return NONE if value is None or not math.isfinite(value) else percent(value)


def shape(sizes: Iterable[int]) -> str:
    """Write a shape.

    >>> shape([4096, 11008])
    '4096×11008'
    """
    return "×".join(map(str, sizes))


def span(values: Iterable[float | None]) -> str:
    """Write what the values range over.

    >>> span([16, 8, 16]), span([2.0]), span([None, 32.0])
    ('8 – 16', '2', '32')
    """
    found = sorted({value for value in values if value is not None})
    if not found:
        return NONE
    return number(found[0]) if len(found) == 1 else f"{number(found[0])} – {number(found[-1])}"


def plural(count: int, noun: str) -> str:
    """Count a noun.

    >>> plural(1, "module"), plural(2, "module")
    ('1 module', '2 modules')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


FILTERS = {
    "number": number,
    "short": short,
    "size": size,
    "share": share,
    "shape": shape,
    "span": span,
    "plural": plural,
}
