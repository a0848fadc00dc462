"""What its owner would not want to publish: secrets, and the paths of a machine."""

import re
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lora_tools.verbs.push.detectors import detected
from lora_tools.verbs.push.paths import private_paths
from lora_tools.verbs.push.secrets import PLACEHOLDER, RULES
from lora_tools.verbs.push.texts import Text, texts

VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
"""Their words may look like anything: paths in them say nothing about a machine."""

MOST = 100
"""The leaks of one file after which the search ends."""

WIDE = 200
"""From here on in a line, its number alone leads nowhere."""

ESCAPED = re.compile(r"(?<!\\)\\{1,16}(?:u([0-9a-fA-F]{4})|/)")
ELSEWHERE = "revoke it where it was made"


class Leak(NamedTuple):
    """One place in a file that must not be published."""

    file: str
    place: str
    kind: str
    shown: str
    """Enough to find it by: a secret is cut short."""
    fix: str = ""
    """What to do beside taking it out."""
    entry: str | None = None
    """Key of the metadata that it is in."""

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind} ({self.shown})"


class LeakMatch(NamedTuple):
    """A leak in a piece of text; what must not be shown is ``text[start:stop]``."""

    kind: str
    start: int
    stop: int
    fix: str = ""
    secret: bool = True


def leaks(name: str, content: Path | bytes) -> list[Leak]:
    """Find the secrets and private paths in all texts of a file, and in its name.

    Reads it once, with bounded memory, in time linear in its size. Raises what `texts` does.
    """
    paths = PurePosixPath(name).name not in VOCABULARIES
    file = _masked(name)
    found: dict[Leak, None] = {}  # a set that keeps their order
    for text in _all(name, content):
        for match in _matches(text.text, paths=paths):
            if match.start >= text.begin and (text.end is None or match.start < text.end):
                place, shown = _place(text, match), _shown(text.text, match)
                found[Leak(file, place, match.kind, shown, match.fix, text.entry)] = None
        if len(found) >= MOST:
            break
    return list(found)


def mask(secret: str) -> str:
    """Return the beginning of a secret: at most a quarter of it.

    >>> mask("hf_" + "a1B2" * 8), mask("hunter2")
    ('hf_a1B…', 'h…')
    """
    return f"{secret[: min(6, len(secret) // 4)]}…"


def _all(name: str, content: Path | bytes) -> Iterator[Text]:
    """Yield the texts of a file, each also as it reads without escapes and NULs."""
    yield Text(name, "its name")
    for text in texts(name, content):
        yield text
        plain = ESCAPED.sub(_unescaped, text.text.replace("\0", ""))
        if plain != text.text:
            yield text._replace(text=plain, begin=0, end=None)


def _unescaped(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16)) if match[1] else "/"
    return character if character.isprintable() else " "


def _matches(text: str, *, paths: bool) -> list[LeakMatch]:
    """Return what is found, in the order of the text; what overlaps is one leak."""
    found: list[LeakMatch] = []
    for match in (*_ours(text), *(_paths(text) if paths else ()), *_theirs(text)):
        at = bisect(found, match.start, key=lambda other: other.start)
        after = at == len(found) or match.stop <= found[at].start
        if after and (at == 0 or found[at - 1].stop <= match.start):
            found.insert(at, match)
    return found


def _ours(text: str) -> Iterator[LeakMatch]:
    lower = text.lower()
    for rule in RULES:
        if any(mark in lower for mark in rule.marks):
            for match in rule.pattern.finditer(text):
                group = "secret" if "secret" in rule.pattern.groupindex and match["secret"] else 0
                if not PLACEHOLDER.search(match[group]):
                    yield LeakMatch(rule.name, *match.span(group), rule.fix)


def _paths(text: str) -> Iterator[LeakMatch]:
    return (LeakMatch("a private path", *match.span(), "", False) for match in private_paths(text))


def _theirs(text: str) -> Iterator[LeakMatch]:
    for name, start, stop in detected(text):
        if not PLACEHOLDER.search(text[start:stop]):
            yield LeakMatch(f"what looks like: {name}", start, stop, ELSEWHERE)


def _place(text: Text, match: LeakMatch) -> str:
    if not text.line:
        return _masked(text.place)
    before = text.text[: match.start]
    column = len(before) - (before.rfind("\n") + 1) + (0 if "\n" in before else text.column)
    line = f"line {text.line + before.count(chr(10))}"
    where = f"{line}, column {column + 1:,}" if column >= WIDE else line
    return f"{_masked(text.place)}, {where}" if text.place else where


def _shown(text: str, match: LeakMatch) -> str:
    value = text[match.start : match.stop]
    return mask(value) if match.secret else _masked(value)


def _masked(text: str) -> str:
    """Return a name or a path with the secrets in it cut short."""
    for match in reversed(_matches(text, paths=False)):
        text = text[: match.start] + mask(text[match.start : match.stop]) + text[match.stop :]
    return text
