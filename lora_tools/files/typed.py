"""Typed views of strangers' objects: every value has its type checked where it is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, TypeGuard

from lora_tools.errors import FormatError, LoraToolsError

MOST = 2**63 - 1
"""The largest whole number that counts anything in a file."""

SHOWN = Repr()
SHOWN.maxstring = SHOWN.maxother = 60
SHOWN.maxlevel = 3


@dataclass(frozen=True, slots=True)
class Fields:
    """An object out of a file, and what to call it in messages.

    A field that is absent or null reads as nothing: None, an empty text list, no entries. All
    others raise ``error``, with what was found and what is expected, unless they are of their type.
    ``True`` is no number; neither are NaN, Inf and whatever no float can hold.
    """

    where: str
    values: Mapping[str, Any]
    error: type[LoraToolsError] = FormatError
    above: str = ""
    """What stands before its keys: the path of an object inside another one."""

    def text(self, key: str) -> str | None:
        """Return a text."""
        value = self.values.get(key)
        return value if value is None or isinstance(value, str) else self._refuse(key, "a text")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            self._refuse(key, "a list of names")
        return tuple(value)

    def names(self, key: str) -> str | tuple[str, ...]:
        """Return one text, or a list of them."""
        value = self.values.get(key)
        return value if isinstance(value, str) else self.texts(key)

    def flag(self, key: str) -> bool:
        """Return whether a switch is on; 0 and 1 are what some tools write for it."""
        value = self.values.get(key)
        if value is None or value in (False, True):
            return bool(value)
        return bool(self._refuse(key, "true or false"))

    def number(self, key: str) -> float | None:
        """Return a finite number, whole or not."""
        value = self.values.get(key)
        return value if value is None or is_number(value) else self._refuse(key, "a number")

    def count(self, key: str) -> int | None:
        """Return a whole number that is not negative; some tools write it as a float."""
        value = self.values.get(key)
        if value is None or is_count(value):
            return None if value is None else int(value)
        return int(self._refuse(key, "a whole number"))

    def mapping(self, key: str) -> "Fields":
        """Return an object inside this one; an empty one where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            self._refuse(key, "an object")
        return Fields(self.where, value or {}, self.error, f"{self.above}{key}.")

    def objects(self, key: str) -> tuple["Fields", ...]:
        """Return a list of objects."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
            self._refuse(key, "a list of objects")
        above = f"{self.above}{key}"
        return tuple(
            Fields(self.where, each, self.error, f"{above}[{at}].") for at, each in enumerate(value)
        )

    def refusal(self, key: str, expected: str) -> LoraToolsError:
        """Return the error that says what a field holds, and what it should."""
        found = shown(self.values.get(key))
        return self.error(f"{self.where}: {self.above}{key} is {found}, not {expected}")

    def _refuse(self, key: str, expected: str) -> Any:
        raise self.refusal(key, expected)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold.

    >>> [is_number(value) for value in (16, 0.5, True, "16", float("nan"), 10**400)]
    [True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> TypeGuard[int | float]:
    """Whether a value is a whole number that may count something.

    >>> [is_count(value) for value in (16, 16.0, 0, True, -1, 0.5, 10**30)]
    [True, True, True, False, False, False, False]
    """
    return is_number(value) and value == int(value) and 0 <= value <= MOST


def shown(value: object) -> str:
    """Return a value as a message has it, cut short.

    >>> shown([[[[[1]]]]]), shown("x" * 100)[:5]
    ('[[[[...]]]]', "'xxxx")
    """
    try:
        return SHOWN.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"of type {type(value).__name__}"
