"""From one dialect of a family to another, through the hub: which rows become which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from lora_tools.architectures.detection import known
from lora_tools.architectures.index import Candidate, Position, positions
from lora_tools.architectures.layout import Dimensions, Numbers, RowLayout, fill
from lora_tools.architectures.rows import Rows, count, joined, paired
from lora_tools.architectures.tables import Rule
from lora_tools.errors import FormatError, LoraToolsError, UnsupportedError


class DialectRows(NamedTuple):
    """Rows of a module of a dialect: those of one of its fine modules."""

    module: str
    member: int
    """Which of the matrices that the module stacks."""
    rows: Rows


class RowMove(NamedTuple):
    """Rows of a module of the source, and the rows of the target that they are."""

    module: str
    member: int
    rows: Rows
    into: int
    at: Rows


@dataclass(frozen=True, slots=True)
class Translated:
    """A module of the target, and the rows of the source that it is made of.

    Rows that no piece has are those of modules that the source lacks.
    """

    path: str
    size: Dimensions
    layout: RowLayout = field(compare=False)  # other families' may say more of the same rows
    pieces: tuple[RowMove, ...]
    source: str | None = None
    """The one module that it is, as it is; None if rows move."""

    def renamed(self, names: Mapping[str, str]) -> "Translated":
        """Return the target with the source's modules under other names."""
        pieces = tuple(piece._replace(module=names[piece.module]) for piece in self.pieces)
        return replace(self, pieces=pieces, source=self.source and names[self.source])

    @property
    def is_whole(self) -> bool:
        """Whether every row comes from somewhere."""
        return sum(count(p.at) for p in self.pieces) == self.size.out * self.size.stack


class Translation(NamedTuple):
    """Every module of a source in the target's dialect, and those that it has no name for."""

    targets: tuple[Translated, ...]
    unmatched: tuple[str, ...] = ()


class Fine(NamedTuple):
    """A fine module, and where a dialect has it."""

    path: str
    size: Dimensions
    place: DialectRows
    copy: int = 0
    """Which of its matrices it is, if the fine module stacks several itself."""


def fine(
    modules: Mapping[str, Dimensions], candidate: Candidate, numbers: Numbers
) -> tuple[list[Fine], list[str]]:
    """Return the fine modules that these are made of, and the names that are not known.

    Raises `FormatError` if rows do not divide as the family's do, and `UnsupportedError` if that
    takes a number of the base model that is not there.
    """
    found, unmatched = [], []
    for module, size in modules.items():
        match = known(module, size, candidate)
        if match is None:
            unmatched.append(module)
            continue
        layout = match.layout
        shares = layout.rows(size.out, size.inp, numbers)
        for member in range(size.stack):
            for part, rows in zip(layout.parts, shares, strict=True):
                path = fill(part.path, match.numbers, member)
                copy = 0 if layout.stacked else member
                place = DialectRows(module, member, rows)
                found.append(Fine(path, Dimensions(count(rows), size.inp), place, copy))
    return found, unmatched


def translate(
    modules: Mapping[str, Dimensions],
    candidate: Candidate,
    dialect: str,
    numbers: Numbers,
    tensor: str = "weight",
) -> Translation:
    """Say what another dialect of the family calls modules, and which rows go where.

    ``tensor``: of which of their tensors, where a dialect has those in several places. Raises
    as `fine` does, and `FormatError` where parts do not fit each other.
    """
    if dialect == candidate.dialect:
        return _unchanged(modules, candidate)
    there = candidate._replace(dialect=dialect)
    if dialect not in (candidate.family.hub, *candidate.family.dialects):
        raise UnsupportedError(f"{candidate.family.name} has no names that are {dialect}'s")
    found, unmatched = fine(modules, candidate, numbers)
    members, nowhere = _members(found, there, tensor)
    targets = tuple(
        _target(path, rule.layout, parts, numbers, modules)
        for (path, rule), parts in members.items()
    )
    return Translation(targets, tuple(dict.fromkeys([*unmatched, *nowhere])))


def undecided(
    modules: Mapping[str, Dimensions],
    candidate: Candidate,
    dialect: str,
    numbers: Numbers,
    tensor: str = "weight",
) -> dict[str, LoraToolsError]:
    """Return the modules for which `translate` raises, each with why; the others it translates."""
    found, why = [], dict[str, LoraToolsError]()
    for module, size in modules.items():
        try:
            found += fine({module: size}, candidate, numbers)[0]
        except LoraToolsError as error:
            why[module] = error
    members, _ = _members(found, candidate._replace(dialect=dialect), tensor)
    for (path, rule), parts in members.items():
        try:
            _target(path, rule.layout, parts, numbers, modules)
        except LoraToolsError as error:
            why |= {each.place.module: error for each, _ in parts}
    return why


_Members: TypeAlias = dict[tuple[str, Rule], list[tuple[Fine, Position]]]
"""The fine modules of each of a dialect's."""


def _members(found: Sequence[Fine], there: Candidate, tensor: str) -> tuple[_Members, list[str]]:
    """Return where a dialect has fine modules, and the source's modules that it has no name for."""
    members: _Members = {}
    nowhere = []
    for each in found:
        position = next(positions(each.path, each.size, there, tensor), None)
        if position is None:
            nowhere.append(each.place.module)
        else:
            members.setdefault((position.path, position.rule), []).append((each, position))
    return members, nowhere


def _unchanged(modules: Mapping[str, Dimensions], candidate: Candidate) -> Translation:
    targets, unmatched = [], []
    for module, size in modules.items():
        match = known(module, size, candidate)
        if match is None:
            unmatched.append(module)
            continue
        rows = (range(size.out),)
        pieces = (RowMove(module, member, rows, member, rows) for member in range(size.stack))
        targets.append(Translated(module, size, match.layout, tuple(pieces), module))
    return Translation(tuple(targets), tuple(unmatched))


def _target(
    path: str,
    layout: RowLayout,
    parts: Sequence[tuple[Fine, Position]],
    numbers: Numbers,
    modules: Mapping[str, Dimensions],
) -> Translated:
    widths = {each.size.inp for each, _ in parts}
    if len(widths) > 1:
        raise FormatError(f"{path}: layers of {sorted(widths)} columns cannot be fused")
    (inp,) = widths
    whose: dict[tuple[int, int, int], str] = {}
    for each, position in parts:
        module = whose.setdefault((position.part, position.member, each.copy), each.place.module)
        if module != each.place.module:
            raise FormatError(f"{module} and {each.place.module} are both {each.path}")
    known = {position.part: each.size.out for each, position in parts}
    out = layout.height(known, inp, numbers)
    shares = layout.rows(out, inp, numbers, known)
    runs: dict[tuple[str, int, int], list[tuple[range, range]]] = {}
    for each, position in sorted(parts, key=lambda pair: (pair[1].member, pair[1].part)):
        into = position.member if layout.stacked else each.copy
        moved = runs.setdefault((each.place.module, each.place.member, into), [])
        moved += paired(each.place.rows, shares[position.part])
    pieces = tuple(
        RowMove(module, member, rows, into, at)
        for (module, member, into), pairs in runs.items()
        for rows, at in [_sorted(pairs)]
    )
    size = Dimensions(out, inp, 1 + max(piece.into for piece in pieces))
    same = all((p.member, p.rows) == (p.into, p.at) == (p.into, (range(out),)) for p in pieces)
    sources = {piece.module for piece in pieces}
    source = sources.pop() if same and len(sources) == 1 else None
    if source is not None and modules[source] != size:
        source = None
    return Translated(path, size, layout, pieces, source)


def _sorted(pairs: Sequence[tuple[range, range]]) -> tuple[Rows, Rows]:
    """Return the rows of the source and of the target in the target's order, in few runs."""
    if all(rows == at for rows, at in pairs):
        rows = joined(range(i, i + 1) for i in sorted(i for run, _ in pairs for i in run))
        return rows, rows
    found: list[tuple[range, range]] = []
    for pair in sorted(pairs, key=lambda pair: pair[1].start):
        sides = [joined(side) for side in zip(found[-1], pair, strict=True)] if found else []
        if sides and all(len(side) == 1 for side in sides):
            found[-1] = sides[0][0], sides[1][0]
        else:
            found.append(pair)
    return tuple(rows for rows, _ in found), tuple(at for _, at in found)
