"""Parts: shares of one output, made by processes that have nothing in common but its folder.

Each has a hidden folder of its own beside the output. Whoever makes the whole takes over what parts
have finished and computes what is missing, so that parts may overlap, die and be repeated.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from lora_tools.errors import OutputError
from lora_tools.files.work import ENDING, partial

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """One of ``count`` shares, numbered from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        """Return it as the command line takes it."""
        return f"{self.number}/{self.count}"

    def share(self, items: Sequence[Item], sizes: Iterable[int]) -> list[Item]:
        """Return the items of this part: consecutive ones, about 1/count of all bytes.

        >>> [Part(n, 2).share("abcd", [5, 1, 2, 4]) for n in (1, 2)]
        [['a', 'b'], ['c', 'd']]
        """
        sizes = list(sizes)
        twice = max(2 * sum(sizes), 1)
        middles = [2 * end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [
            item
            for item, middle in zip(items, middles, strict=True)
            if min(middle * self.count // twice, self.count - 1) == self.number - 1
        ]

    def beside(self, out: Path) -> Path:
        """Return the path whose work in progress is that of this part of ``out``.

        >>> Part(2, 7).beside(Path("models/small")).as_posix()
        'models/small-part-2-of-7'
        """
        place = out.with_name(f"{out.stem}-part-{self.number}-of-{self.count}{out.suffix}")
        if place not in _readable([partial(place)], out):
            raise OutputError(f"{out}: its name is too long for parts").hint(
                "Choose a shorter one."
            )
        return place


def parts(out: Path) -> list[Path]:
    """Return the paths, as `Part.beside` gives them, of all parts of ``out`` that were begun."""
    if not out.parent.is_dir():
        return []
    return sorted(_readable(out.parent.iterdir(), out))


def _readable(folders: Iterable[Path], out: Path) -> list[Path]:
    """Return what the hidden folders among these that belong to parts of ``out`` are for."""
    form = re.compile(
        rf"\.({re.escape(out.stem)}-part-\d+-of-\d+{re.escape(out.suffix)}){re.escape(ENDING)}"
    )
    found = (form.fullmatch(folder.name) for folder in folders)
    return [out.with_name(match[1]) for match in found if match]
