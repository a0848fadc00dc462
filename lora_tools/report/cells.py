"""What a cell of a table says of one value, or of those of several rows."""

from collections.abc import Iterable

NONE = "–"
"""Where there is nothing to say."""


def shape(sizes: Iterable[int]) -> str:
    """Write a shape.

    >>> shape((4096, 11008)), shape(())
    ('4096×11008', 'scalar')
    """
    return "×".join(map(str, sizes)) or "scalar"


def span(values: Iterable[float], spec: str = "") -> str:
    """Write what values range over, each in a format of Python's.

    >>> span([16, 8, 16]), span([2.0], ".4g"), span([])
    ('8–16', '2', '–')
    """
    found = sorted(values)
    ends = dict.fromkeys(format(value, spec) for value in (*found[:1], *found[-1:]))
    return "–".join(ends) or NONE
