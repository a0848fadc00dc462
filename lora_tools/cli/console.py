"""What a person sees: results on stdout, progress on stderr."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click
from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, total: int, what: str, quiet: bool) -> Iterator[Item]:
    """Show a bar on stderr for what takes longer than a second; none if stderr is no terminal."""
    hidden = quiet or not sys.stderr.isatty()
    yield from tqdm(
        items, total=total, desc=what, unit="module", delay=1, leave=False, disable=hidden
    )


def say(text: str) -> None:
    """Tell a person something on stderr."""
    click.echo(text, err=True)
