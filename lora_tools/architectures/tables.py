"""The words in which a family's table is written, and what a table says, rule by rule.

A table maps paths of a dialect to fine paths. ``#`` is any number; ``{a,b}`` stands for each of
them, on both sides in the same order. A value is a path, a `RowLayout`, several that a
module's size tells apart, or a prefix with the table of what follows it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from lora_tools.architectures.layout import FinePart, Halves, Order, Role, RowLayout

Table: TypeAlias = Mapping[str, "str | RowLayout | list[RowLayout] | tuple[str, Table]"]


class Rule(NamedTuple):
    """A module of a dialect, its numbers written as ``#``, and the fine modules it is made of."""

    path: str
    layout: RowLayout


def rows(*paths: str, shares: str = "", **options: Any) -> RowLayout:
    """Return the layout of these modules' rows, one under the other, by default equal shares."""
    found = [path for each in paths for path in expand(each)]
    named = shares.split() or ["1"] * len(found)
    parts = (FinePart(path, share) for path, share in zip(found, named, strict=True))
    return RowLayout(tuple(parts), **options)


def one(path: str, *, order: Order = None, **options: Any) -> RowLayout:
    """Return the layout of a module that is one in both dialects, with these options."""
    return RowLayout((FinePart(path, order=order),), **options)


def halves(path: str, **options: Any) -> RowLayout:
    """Return the layout of a module whose halves are swapped."""
    return one(path, order=Halves(), **options)


def norm(path: str, tensor: str = "weight") -> RowLayout:
    """Return the layout of a norm, whose tensor may be called otherwise or ``weight``."""
    names = ((tensor, "weight"), ("weight", "weight"), ("bias", "bias"))
    return one(path, role="norm", tensors=() if tensor == "weight" else names)


def being(role: Role, *paths: str) -> dict[str, RowLayout]:
    """Return modules that are called alike in both dialects, with their role."""
    return {path: one(path, role=role) for path in paths}


def same(*paths: str) -> dict[str, str]:
    """Return modules that are called alike in both dialects."""
    return {path: path for path in paths}


@cache
def expand(text: str) -> tuple[str, ...]:
    """Return what a pattern with braces stands for, as a shell expands it.

    >>> expand("to_{q,k}"), expand("{,x.}y")
    (('to_q', 'to_k'), ('y', 'x.y'))
    """
    if "{" not in text:
        return (text,)
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return (text,)
    head, tail = text[: found.start()], text[found.end() :]
    return tuple(each for choice in found[1].split(",") for each in expand(head + choice + tail))


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """An entry of a table that is not taken apart yet, which takes time."""

    paths: tuple[str, ...]
    """How the paths of its modules begin in the dialect."""
    fine: tuple[str, ...]
    """How the fine ones do."""
    entry: Table
    inside: tuple[str, str] = ("", "")
    """What stands before the entry's paths on both sides."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it says, rule by rule."""
        return _taken_apart(self)


@cache
def _taken_apart(section: Section) -> tuple[Rule, ...]:
    return tuple(flat(section.entry, *section.inside))


def sections(table: Table, before: str = "", fine: str = "") -> Iterator[Section]:
    """Yield the entries of a table, in the order of `flat`."""
    for key, value in table.items():
        if isinstance(value, tuple):
            for left, right in _pairs(before + key, fine + value[0]):
                if left and right:
                    yield Section((left,), (right,), {left: (right, value[1])})
                else:
                    yield from sections(value[1], left, right)
            continue
        fines = (path for end in _fine(value) for path in expand(fine + end))
        yield Section(expand(before + key), tuple(fines), {key: value}, (before, fine))


def _fine(value: "str | RowLayout | list[RowLayout]") -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    layouts = value if isinstance(value, list) else [value]
    return tuple(part.path for layout in layouts for part in layout.parts)


def flat(table: Table, before: str = "", fine: str = "") -> Iterator[Rule]:
    """Yield the rules of a table. Raises `ValueError` if braces of both sides do not pair up."""
    for key, value in table.items():
        if isinstance(value, tuple):
            for left, right in _pairs(before + key, fine + value[0]):
                yield from flat(value[1], left, right)
            continue
        if isinstance(value, str):
            for left, right in _pairs(before + key, fine + value):
                yield Rule(left, RowLayout((FinePart(right),)))
            continue
        for layout in value if isinstance(value, list) else [value]:
            yield from _rules(before + key, fine, layout)


def _rules(path: str, fine: str, layout: RowLayout) -> Iterator[Rule]:
    if len(layout.parts) > 1:
        parts = tuple(part._replace(path=fine + part.path) for part in layout.parts)
        yield Rule(path, replace(layout, parts=parts))
        return
    (part,) = layout.parts
    for left, right in _pairs(path, fine + part.path):
        yield Rule(left, replace(layout, parts=(part._replace(path=right),)))


def _pairs(left: str, right: str) -> Iterator[tuple[str, str]]:
    ones, others = expand(left), expand(right)
    if len(ones) != len(others):
        raise ValueError(f"{left} and {right} do not stand for as many paths")
    return zip(ones, others, strict=True)
