"""What every verb's report is: one set of data that is written as JSON, as text and as Markdown."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from lora_tools.files.disk import write_text
from lora_tools.names import collapse, template
from lora_tools.report.figures import percent
from lora_tools.report.markdown import block, plain
from lora_tools.text import json_text, label

Item = TypeVar("Item")


class Document(ABC):
    """A report. Inherited, so that the same data are written in the same way by every verb."""

    __slots__ = ()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as `report.schemas` describes it."""

    @abstractmethod
    def table(self, style: str) -> str:
        """Return its rows as a table in a style of tabulate, repeated layers in one line."""

    @abstractmethod
    def summary(self) -> str:
        """Return the totals in sentences, a line each."""

    def to_json(self) -> str:
        """Return it as JSON."""
        return json_text(self.to_dict())

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, self.to_json() + "\n")

    def to_text(self) -> str:
        """Return it for a terminal: the table, then the summary."""
        return f"{self.table('simple')}\n\n{self.summary()}"


def section(title: str, arguments: str, summary: str, *tables: str) -> str:
    """Return a section of a model card: what made it, the tables, and the summary as points.

    Title and tables are Markdown; the summary is plain text.
    """
    lines = [title, "", *command_line(arguments)]
    for table in tables:
        lines += [table, ""]
    return "\n".join([*lines, *(f"- {plain(line)}" for line in summary.split("\n"))])


def remarks(left_out: Mapping[str, str], notes: Iterable[str]) -> Iterator[str]:
    """Yield what is not in the result, and what a person should know, a sentence each."""
    yield from (f"left out: {label(name)} ({why})" for name, why in left_out.items())
    yield from (f"note: {note}" for note in notes)


def removals(shares: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each template of removed modules, with the share that they have together."""
    for names in grouped(shares, template):
        share = percent(math.hypot(*(shares[name] for name in names)))
        yield f"removed: {label(collapse(names))} ({share} of ‖ΔW‖)"


def command_line(arguments: str) -> Iterator[str]:
    """Yield the lines of Markdown that show a command line, if there was one."""
    if arguments:
        yield from block("sh", arguments)


def grouped(rows: Iterable[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    """Return the rows that share a key together, in the order of the keys."""
    return [list(found) for _, found in groupby(sorted(rows, key=key), key=key)]
