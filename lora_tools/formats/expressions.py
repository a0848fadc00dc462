r"""Regular expressions that strangers wrote: what `re` makes of them, in time that has an end.

Most are plain names, or such with a few escapes. Those are looked up in tables, so that thousands
of them cost no more than one. The others are matched by a clock, because an expression such as
``(a|a)+$`` takes `re` longer than anybody lives.
"""

import re
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from lora_tools.errors import FormatError
from lora_tools.files.typed import shown

LONGEST = 65_536
"""Characters of an expression."""

LONGEST_NAME = 4_096
"""Characters of a name that an expression is held against."""

SECONDS = 10.0
"""What the matches of one field may take, all names together."""

PLAIN = re.compile(r"\^?(?:[^\\.^$*+?{}\[\]|()]|\\[ -/:-@\[-`{-~]|\.)*", re.DOTALL)
"""An expression of single characters alone; a dot is any one of them."""

# `regex` reads braces that bound no repetition as a fuzzy match, and `[[:alpha:]]` as a class.
BRACE = re.compile(r"\\.|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)
CLASS = "[:"


class Clock:
    """What is left of the time for a field's matches."""

    __slots__ = ("left", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        """File and field, for messages."""
        self.left = SECONDS

    def spend(self, began: float) -> None:
        """Take the time since ``began``, of `time.perf_counter`; `FormatError` if all is gone."""
        self.left -= time.perf_counter() - began
        if self.left < 0:
            raise FormatError(f"{self.where}: its expressions take too long to match")


class Literal(NamedTuple):
    """A plain expression: its characters, and at which of them any other will do."""

    text: str
    wild: tuple[int, ...]
    anchored: bool
    """Whether it begins with ``^``."""


def literal(expression: str) -> Literal | None:
    r"""Return what a plain expression stands for, or None if it is not plain.

    >>> literal(r"q\.k.v")
    Literal(text='q.k.v', wild=(3,), anchored=False)
    >>> literal("q|k") is None
    True
    """
    if not PLAIN.fullmatch(expression):
        return None
    body = expression.removeprefix("^")
    characters: list[str] = []
    wild: list[int] = []
    escaped = False
    for character in body:
        if character == "\\" and not escaped:
            escaped = True
            continue
        if character == "." and not escaped:
            wild.append(len(characters))
        characters.append(character)
        escaped = False
    return Literal("".join(characters), tuple(wild), body != expression)


class Literals:
    """Plain expressions in their order, by their length and by where any character will do."""

    __slots__ = ("_rows", "longest")

    def __init__(self) -> None:
        self._rows: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self.longest = -1

    def add(self, found: Literal, order: int) -> None:
        """Add one; of those that match alike the first counts."""
        row = self._rows.setdefault(len(found.text), {})
        row.setdefault(found.wild, {}).setdefault(found.text, order)
        self.longest = max(self.longest, len(found.text))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of what they match."""
        return tuple(self._rows)

    def has(self, length: int) -> bool:
        """Whether any of them matches texts of this length."""
        return length in self._rows

    def find(self, text: str) -> int | None:
        """Return the order of the first that matches the whole of a text."""
        orders = (
            names.get(_masked(text, wild)) for wild, names in self._rows.get(len(text), {}).items()
        )
        return min((order for order in orders if order is not None), default=None)


def matches(found: Literal, text: str) -> bool:
    """Whether a plain expression matches the whole of a text."""
    return len(text) == len(found.text) and _masked(text, found.wild) == found.text


def _masked(text: str, wild: tuple[int, ...]) -> str:
    """Return a text with dots where any character will do, which a line's end is not."""
    start, parts = 0, []
    for at in wild:
        if text[at] != "\n":
            parts.append(text[start:at])
            start = at + 1
    return ".".join([*parts, text[start:]]) if parts else text


class Expression:
    """One expression of a field, compiled when it is first needed."""

    __slots__ = ("_clock", "_compiled", "_plain", "_whole", "text")

    def __init__(self, text: str, clock: Clock, around: str = "{}") -> None:
        self.text = text
        self._whole = around.replace("{}", text)
        self._clock = clock
        self._plain = literal(text) if around == "{}" else None
        self._compiled: Any = None

    def check(self) -> None:
        """Raise `FormatError` for what is no expression, or longer than any should be."""
        if self._compiled is None and self._plain is None:
            self._compiled = compiled(self.text, self._whole, self._clock.where)

    def match(self, name: str) -> Any:
        """Return the match at the beginning of a name, or None.

        Raises `FormatError` as `check` does, and when the field's time is up.
        """
        return self._run("match", name)

    def is_whole(self, name: str) -> bool:
        """Whether it matches the whole of a name; raises as `match` does."""
        if self._plain:
            return matches(self._plain, name)
        return self._run("fullmatch", name) is not None

    def _run(self, method: str, name: str) -> Any:
        self.check()
        check_name(name, self._clock.where)
        began = time.perf_counter()
        try:
            found = getattr(self._compiled, method)(name, timeout=max(self._clock.left, 1e-6))
        except (TimeoutError, MemoryError) as error:
            raise FormatError(
                f"{self._clock.where}: {shown(self.text)} takes too long to match {shown(name)}"
            ).hint("Write it without repetitions inside repetitions.") from error
        self._clock.spend(began)
        return found


def compiled(text: str, whole: str, where: str) -> Any:
    """Return ``whole``, of which ``text`` is the stranger's, compiled by `regex`.

    Raises `FormatError` where `re`, which is what PEFT asks, would not compile it.
    """
    if len(text) > LONGEST:
        raise FormatError(
            f"{where}: an expression of {len(text):,} characters, {shown(text)}: more than the"
            f" {LONGEST:,} that are read"
        )
    import regex  # few adapters have any

    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of sets that Python may read otherwise once
            re.compile(whole)
        if CLASS in whole:
            whole = whole.replace(CLASS, r"[\:")
        return regex.compile(BRACE.sub(_escaped, whole), cache_pattern=False)
    except (re.error, regex.error, ArithmeticError, RecursionError) as error:
        raise FormatError(
            f"{where}: {shown(text)} is not a regular expression ({error})"
        ) from error


def check_name(name: str, where: str) -> None:
    """Raise `FormatError` for a name that is too long to be held against expressions."""
    if len(name) > LONGEST_NAME:
        raise FormatError(
            f"{where}: held against a name of {len(name):,} characters, {shown(name)}: more than"
            f" the {LONGEST_NAME:,} that any model has"
        )


def suffixes(name: str, longest: int) -> Iterator[str]:
    """Yield the name and its ends from a dot on, the shortest first, up to a length."""
    at = name.rfind(".", max(0, len(name) - longest - 1))
    while at >= 0:
        yield name[at + 1 :]
        at = name.rfind(".", max(0, len(name) - longest - 1), at)
    if len(name) <= longest:
        yield name


def _escaped(match: re.Match[str]) -> str:
    return "\\{" if match[0] == "{" else match[0]
