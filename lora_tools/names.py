"""Names of modules: match them by pattern, and collapse the repeated ones for people."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


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
    text = template(names[0])
    for column in zip(*numbers, strict=True):
        values = sorted({int(value) for value in column})
        shown = str(values[0]) if len(values) == 1 else f"[{_ranges(values)}]"
        text = text.replace("[]", shown, 1)
    return text


def _ranges(values: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
