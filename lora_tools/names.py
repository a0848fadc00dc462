"""Names of modules: by pattern, and collapsed for people."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
"""A number that is a word of its own, as in layers.11, blocks_0_attn and unet:3:up."""

LONGEST = 18
"""Digits of a number that is counted."""


def matches(pattern: str, name: str) -> bool:
    """Whether a shell-style pattern fits the whole name, or its end from a dot on.

    >>> matches("q_proj", "layers.0.q_proj"), matches("layers.1?.*", "layers.12.q_proj")
    (True, True)
    >>> matches("proj", "layers.0.q_proj")
    False
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def template(name: str) -> str:
    """Return the name with its numbers blanked, the same for every repetition of a layer.

    >>> template("model.layers.11.self_attn.q_proj")
    'model.layers.[].self_attn.q_proj'
    """
    return NUMBER.sub("[]", name)


def collapse(names: Sequence[str]) -> str:
    """Write names of one template as one name with ranges.

    >>> collapse(["layers.0.q", "layers.1.q", "layers.2.q", "layers.5.q"])
    'layers.[0..2,5].q'
    """
    numbers = [NUMBER.findall(name) for name in names]
    if len({len(found) for found in numbers}) > 1:  # some have a blank of their own
        return template(names[0])
    columns = iter(zip(*numbers, strict=True))
    return NUMBER.sub(lambda _: _column(next(columns)), names[0])


def _column(column: Sequence[str]) -> str:
    """Return the numbers at one place of all names, in ranges."""
    if max(map(len, column)) > LONGEST:  # no layer's
        return column[0] if len({*column}) == 1 else "[…]"
    width = len(column[0]) if column[0].startswith("0") else 0  # 007 stays 007
    values = sorted({int(value) for value in column})
    return f"{values[0]:0{width}}" if len(values) == 1 else f"[{_ranges(values, width)}]"


def _ranges(values: Iterable[int], width: int) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(
        f"{run[0]:0{width}}" if len(run) == 1 else f"{run[0]:0{width}}..{run[-1]:0{width}}"
        for run in runs
    )
