"""Which rule of which family a module's path falls under, dotted or flattened."""

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from lora_tools.architectures.family import Family, itself
from lora_tools.architectures.layout import Dimensions, Role, RowLayout, fill
from lora_tools.architectures.tables import Rule, Section

KEYS = 4096
"""How many paths with their numbers blanked are remembered: a file says them, so not all are."""
WILD = ("#", "*")
FLAT = re.compile(r"(?<![^_])(?:[0-9]+|[#*])(?![^_])")
DOTTED = re.compile(r"(?<![^.])(?:[0-9]+|[#*])(?![^.])")


class Candidate(NamedTuple):
    """A family, and the dialect of it in which modules are named."""

    family: Family
    dialect: str

    def __str__(self) -> str:
        return f"{self.family.name} ({self.dialect})"


class PathMatch(NamedTuple):
    """A path under a rule: its numbers, and what follows it, which is a tensor's name."""

    rule: Rule
    numbers: tuple[str, ...]
    rest: str = ""

    @property
    def path(self) -> str:
        """The path itself, with its dots."""
        return fill(self.rule.path, self.numbers)

    @property
    def layout(self) -> RowLayout:
        """How its rows lie."""
        return self.rule.layout


class IndexedRule(NamedTuple):
    """A rule, with the numbers that its path fixes."""

    rule: Rule
    literal: tuple[str, ...]
    places: list[int]
    """Where its path fixes a number."""
    fixed: list[str]

    @classmethod
    def of(cls, rule: Rule, path: str, *, flat: bool = False) -> "IndexedRule":
        """Return the entry of a rule by one of its paths."""
        literal = template(path, flat=flat)[1]
        places = [place for place, word in enumerate(literal) if word not in WILD]
        return cls(rule, literal, places, [literal[place] for place in places])

    def fits(self, words: Sequence[str]) -> bool:
        """Whether a path's numbers are those that the rule fixes."""
        return [words[place] for place in self.places] == self.fixed

    def numbers(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return the numbers at ``#``."""
        return tuple(w for own, w in zip(self.literal, words, strict=True) if own == "#")

    def member(self, words: Sequence[str]) -> int:
        """Return the number at ``*``: which matrix of a stack it is."""
        pairs = zip(self.literal, words, strict=True)
        return next((int(word) for own, word in pairs if own == "*"), 0)


def matches(path: str, candidate: Candidate, *, flat: bool = False) -> Iterator[PathMatch]:
    """Yield the rules that a module's whole path falls under.

    ``flat``: the path has underscores for dots. Several mean that its size decides.
    """
    key, words = template(path, flat=flat)
    for entry in _entries(candidate, key, flat=flat):
        if entry.fits(words):
            yield PathMatch(entry.rule, entry.numbers(words))


def everywhere(
    path: str, families: tuple[Family, ...], *, flat: bool = False
) -> Iterator[tuple[Candidate, PathMatch]]:
    """Yield the rules of all families and dialects that a module's whole path falls under."""
    key, words = template(path, flat=flat)
    for candidate, entry in _catalogue(families, key, flat=flat):
        if entry.fits(words):
            yield candidate, PathMatch(entry.rule, entry.numbers(words))


def find(name: str, candidate: Candidate) -> Iterator[PathMatch]:
    """Yield the rules that a tensor's name falls under, by the longest path that it begins with."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        rest = ".".join(words[end:])
        found = [
            match._replace(rest=rest)
            for match in matches(".".join(words[:end]), candidate)
            if not match.layout.tensors or rest in dict(match.layout.tensors)
        ]
        if found:
            yield from found
            return


class Position(NamedTuple):
    """Where a dialect has a fine module."""

    rule: Rule
    path: str
    part: int
    member: int
    """Which matrix of a stack it is."""


def positions(
    path: str, size: Dimensions | None, candidate: Candidate, tensor: str = "weight"
) -> Iterator[Position]:
    """Yield the modules of a dialect that a fine module is, or is a part of.

    ``size`` is the fine module's, which tells layers apart that are called alike; ``tensor``: which
    of its tensors is asked for, where the dialect has them in several places.
    """
    key, words = template(path)
    for entry, part in _parts(candidate).get(key, ()):
        layout = entry.rule.layout
        if not layout.has(tensor) or not entry.fits(words):
            continue
        if len(layout.parts) > 1 or layout.fits(size):
            numbers = entry.numbers(words)
            member = entry.member(words)
            yield Position(entry.rule, fill(entry.rule.path, numbers), part, member)


def reading(candidate: Candidate, paths: Iterable[str]) -> Hashable:
    """Return what a candidate says of modules with these paths; equal, where several say the same.

    It depends on the paths with their numbers blanked, of which a model has few.
    """
    return tuple(_rules(candidate, paths)), tuple(candidate.family.blocks.items())


def fine_paths(candidate: Candidate, paths: Iterable[str]) -> list[str]:
    """Return the fine modules of modules with these paths, numbers blanked."""
    rules = _rules(candidate, paths)
    return sorted({template(part.path)[0] for rule in rules for part in rule.layout.parts})


def placing(candidate: Candidate, fine: Iterable[str]) -> Hashable:
    """Return where a candidate has fine modules; equal, where several have them alike."""
    places = _parts(candidate)
    return tuple(tuple((entry.rule, part) for entry, part in places.get(path, ())) for path in fine)


def _rules(candidate: Candidate, paths: Iterable[str]) -> list[Rule]:
    keys = sorted({template(path)[0] for path in paths})
    return [entry.rule for key in keys for entry in _entries(candidate, key, flat=False)]


@cache
def _parts(candidate: Candidate) -> dict[str, list[tuple[IndexedRule, int]]]:
    """Return the rules of a dialect by each of their fine paths, numbers blanked."""
    family, dialect = candidate
    found: dict[str, list[tuple[IndexedRule, int]]] = {}
    for rule in family.rules(dialect):
        for number, part in enumerate(rule.layout.parts):
            key, _ = template(part.path)
            found.setdefault(key, []).append((IndexedRule.of(rule, part.path), number))
    return found


# Most tables have nothing to do with a file: only sections are taken apart that begin as it does.


@lru_cache(KEYS)
def _catalogue(
    families: tuple[Family, ...], key: str, *, flat: bool
) -> tuple[tuple[Candidate, IndexedRule], ...]:
    """Return the rules of all dialects whose path with its numbers blanked is this."""
    return tuple(
        (candidate, entry)
        for candidate in _beginning(families, flat=flat).get(_word(key, flat=flat), ())
        for entry in _entries(candidate, key, flat=flat)
    )


@cache
def _beginning(families: tuple[Family, ...], *, flat: bool) -> dict[str, list[Candidate]]:
    """Return the dialects that have paths with this first word."""
    found: dict[str, list[Candidate]] = {}
    for family in families:
        for dialect in (family.hub, *family.dialects):
            candidate = Candidate(family, dialect)
            for word in _words(candidate, flat=flat):
                found.setdefault(word, []).append(candidate)
    return found


@lru_cache(KEYS)
def _entries(candidate: Candidate, key: str, *, flat: bool) -> tuple[IndexedRule, ...]:
    """Return the rules of a dialect whose path with its numbers blanked is this."""
    family, dialect = candidate
    word = _word(key, flat=flat)
    found = [
        rule
        for section in _words(candidate, flat=flat).get(word, ())
        for rule in _templates(section, fine=dialect == family.hub, flat=flat).get(key, ())
    ]
    if dialect == family.hub:  # several dialects' tables may have a fine module
        roles: dict[str, Role | None] = {}
        for rule in found:
            roles[rule.path] = roles.get(rule.path) or rule.layout.role
        found = [itself(path, role) for path, role in roles.items()]
    return tuple(IndexedRule.of(rule, rule.path, flat=flat) for rule in found)


@cache
def _templates(section: Section, *, fine: bool, flat: bool) -> dict[str, list[Rule]]:
    """Return the rules of a section by their paths, or fine ones, with their numbers blanked."""
    found: dict[str, list[Rule]] = {}
    for path, layout in section.rules:
        paths = [part.path.replace("*", "#") for part in layout.parts] if fine else [path]
        for each in paths:
            found.setdefault(template(each, flat=flat)[0], []).append(Rule(each, layout))
    return found


@cache
def _words(candidate: Candidate, *, flat: bool) -> dict[str, list[Section]]:
    """Return the sections of a dialect by the first word of their paths."""
    family, dialect = candidate
    found: dict[str, list[Section]] = {}
    for section in family.sections(dialect):
        paths = section.fine if dialect == family.hub else section.paths
        for word in {_word(path, flat=flat) for path in paths}:
            found.setdefault(word, []).append(section)
    return found


def _word(path: str, *, flat: bool) -> str:
    """Return the first word of a path's `template`, at a small part of the cost."""
    word = (path.replace(".", "_").partition("_") if flat else path.partition("."))[0]
    return "#" if word in WILD or word.isdigit() else word


def template(path: str, *, flat: bool = False) -> tuple[str, tuple[str, ...]]:
    """Return a path with its numbers blanked, and the numbers.

    >>> template("blocks.12.linear_1"), template("blocks_12_linear_1", flat=True)
    (('blocks.#.linear_1', ('12',)), ('blocks_#_linear_#', ('12', '1')))
    """
    if flat:
        path = path.replace(".", "_")
    expression = FLAT if flat else DOTTED
    return expression.sub("#", path), tuple(expression.findall(path))
