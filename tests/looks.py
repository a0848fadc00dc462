"""Which paths a block of code opens or asks about."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

_WATCHING: list[set[str]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _WATCHING and event in ("open", "os.listdir", "os.scandir"):
        _note(arguments[0])


def _note(path: object) -> None:
    if isinstance(path, str | bytes | os.PathLike):
        for seen in _WATCHING:
            seen.add(os.fsdecode(path))


sys.addaudithook(_hook)  # there is none for questions: those are asked through these functions


@contextmanager
def looked_at() -> Iterator[set[str]]:
    """Yield the paths, as they come, that are opened, listed, or asked about."""

    def noting(function):
        def noted(path, *arguments, **options):
            _note(path)
            return function(path, *arguments, **options)

        return noted

    names = ("stat", "lstat", "access", "readlink")
    patches = [mock.patch.object(os, name, noting(getattr(os, name))) for name in names]
    seen: set[str] = set()
    _WATCHING.append(seen)
    for patch in patches:
        patch.start()
    try:
        yield seen
    finally:
        for patch in patches:
            patch.stop()
        _WATCHING.remove(seen)
