"""Rank and alpha patterns: a value for every module whose path an expression matches."""

import re
from collections.abc import Mapping
from typing import Any


def pattern_value(pattern: Mapping[str, Any] | None, path: str) -> Any:
    """Return the first entry of a rank or alpha pattern that matches ``path``, or None.

    The keys are regular expressions for a suffix of the path that begins at a dot; the first in
    the order of the file wins (`peft.utils.other.get_pattern_key`).
    """
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return (pattern or {}).get(path)  # the name itself, though it is no expression for itself


def write_pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Return a pattern that gives each path its value, in plain names where PEFT reads them right.

    In alphabetical order, into which PEFT sorts patterns when it saves, so that the first match
    stays the same one.

    >>> write_pattern({"l.0.q": 4, "l.1.q": 8}, default=8)
    {'l.0.q': 4}
    """
    plain = {path: number(values[path]) for path in sorted(values) if values[path] != default}
    exact = {f"^{re.escape(path)}": value for path, value in plain.items()}
    for path, value in values.items():
        try:
            found = pattern_value(plain, path)
        except re.error:  # a name need not be an expression
            return exact
        if (default if found is None else found) != value:
            return exact
    return plain


def number(value: float) -> float:
    """Return a whole number as an int, as configurations have it."""
    return int(value) if float(value).is_integer() else value
