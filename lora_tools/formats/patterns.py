"""Rank and alpha patterns: a value for every module whose path an expression matches."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lora_tools.errors import FormatError
from lora_tools.formats.expressions import (
    Clock,
    Expression,
    Literals,
    check_name,
    literal,
    suffixes,
)


class Patterns:
    """What a pattern gives each path. Its keys are read once; a look-up does not count them.

    The keys are regular expressions for a suffix of the path that begins at a dot; the first in
    the order of the file wins (`peft.utils.other.get_pattern_key`).
    """

    __slots__ = ("_anchored", "_clock", "_expressions", "_free", "_keys", "_pattern")

    def __init__(self, pattern: Mapping[str, Any] | None, where: str = "pattern") -> None:
        self._pattern = pattern or {}
        self._keys = tuple(self._pattern)
        self._clock = Clock(where)
        self._anchored, self._free = Literals(), Literals()
        self._expressions: list[tuple[int, Expression]] = []
        for order, key in enumerate(self._keys):
            if found := literal(key):
                (self._anchored if found.anchored else self._free).add(found, order)
            else:
                around = Expression(key, self._clock, r"(.*\.)?({})$")
                self._expressions.append((order, around))

    def check(self) -> None:
        """Raise `FormatError` for a key that is no regular expression."""
        for _, expression in self._expressions:
            expression.check()

    def value(self, path: str) -> Any:
        """Return the first value whose key matches a path, or None.

        Raises `FormatError` for a key that is no expression, or none that ends in time.
        """
        if not self._keys:
            return None
        check_name(path, self._clock.where)
        began = time.perf_counter()
        orders = [self._anchored.find(end) for end in (path, *_without_end(path))]
        orders += map(self._free.find, _ends(path, self._free.longest))
        first = min((order for order in orders if order is not None), default=len(self._keys))
        self._clock.spend(began)
        for order, expression in self._expressions:
            if order > first:
                break
            if expression.match(path):
                first = order
                break
        if first < len(self._keys):
            return self._pattern[self._keys[first]]
        return self._pattern.get(path)  # the name itself, though it is no expression for itself


class Suffixes:
    """Plain names, each of which means all paths that are it or end with a dot and it."""

    __slots__ = ("_longest", "_orders")

    def __init__(self, names: Iterable[str]) -> None:
        self._orders: dict[str, int] = {}
        for order, name in enumerate(names):
            self._orders.setdefault(name, order)
        self._longest = max(map(len, self._orders), default=-1)

    def __contains__(self, path: str) -> bool:
        """Whether a path is one of the names, whole."""
        return path in self._orders

    def first(self, path: str) -> int | None:
        """Return the place among the names of the first that means a path, or None."""
        found = (self._orders.get(end) for end in suffixes(path, self._longest))
        return min((order for order in found if order is not None), default=None)


class Segments:
    """Expressions for what stands between two dots of a path, as ``modules_to_save`` has them."""

    __slots__ = ("_anchored", "_clock", "_expressions", "_free")

    def __init__(self, names: Iterable[str], where: str = "names") -> None:
        self._clock = Clock(where)
        self._anchored, self._free = Literals(), Literals()
        self._expressions: list[Expression] = []
        for order, name in enumerate(names):
            if found := literal(name):
                (self._anchored if found.anchored else self._free).add(found, order)
            else:
                self._expressions.append(Expression(name, self._clock, r"(^|.*\.){}($|\..*)"))

    def check(self) -> None:
        """Raise `FormatError` for a name that is no regular expression."""
        for expression in self._expressions:
            expression.check()

    def match(self, path: str) -> bool:
        """Whether a path is, or lies in, what one of the names means."""
        if not (self._expressions or self._free.lengths or self._anchored.lengths):
            return False
        check_name(path, self._clock.where)
        began = time.perf_counter()
        found = self._among(self._anchored, path, (0,)) or self._among(
            self._free, path, _starts(path)
        )
        self._clock.spend(began)
        return found or any(expression.match(path) for expression in self._expressions)

    def _among(self, names: Literals, path: str, starts: Iterable[int]) -> bool:
        return any(
            names.find(path[start : start + length]) is not None
            for start in starts
            for length in names.lengths
            if _is_end(path, start + length)
        )


def _ends(path: str, longest: int) -> Iterator[str]:
    """Yield what follows each dot of a path, and all of it, as far as ``.*`` and ``$`` reach."""
    if "\n" not in path:
        yield from suffixes(path, longest)
        return
    for start in _starts(path):
        yield path[start:]
        yield from _without_end(path[start:])


def _is_end(path: str, at: int) -> bool:
    r"""Whether ``($|\..*)`` matches a path from here on."""
    return at == len(path) or path.startswith(".", at) or (at == len(path) - 1 and path[at] == "\n")


def _without_end(text: str) -> tuple[str, ...]:
    return (text[:-1],) if text.endswith("\n") else ()


def _starts(path: str) -> Iterator[int]:
    """Yield the beginning of a path, and where each dot ends that ``.*`` reaches."""
    yield 0
    line = path.partition("\n")[0]
    yield from (at + 1 for at, character in enumerate(line) if character == ".")


def write_pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Return a pattern that gives each path its value, in plain names where PEFT reads them right.

    In alphabetical order, into which PEFT sorts patterns when it saves, so that the first match
    stays the same one.

    >>> write_pattern({"l.0.q": 4, "l.1.q": 8}, default=8)
    {'l.0.q': 4}
    """
    plain = {path: number(values[path]) for path in sorted(values) if values[path] != default}
    exact = {f"^{re.escape(path)}": value for path, value in plain.items()}
    patterns = Patterns(plain)
    for path, value in values.items():
        try:
            found = patterns.value(path)
        except FormatError:  # a name need not be an expression
            return exact
        if (default if found is None else found) != value:
            return exact
    return plain


def number(value: float) -> float:
    """Return a whole number as an int, as configurations have it."""
    return int(value) if float(value).is_integer() else value
