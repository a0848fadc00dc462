"""The rows of a base that a module's update is added to, by the tables of a known family."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from lora_tools.architectures import families
from lora_tools.architectures.detection import Component, Hints, detect
from lora_tools.architectures.index import (
    Candidate,
    Position,
    fine_paths,
    placing,
    positions,
    reading,
)
from lora_tools.architectures.layout import Dimensions, Numbers
from lora_tools.architectures.numbers import numbers_of
from lora_tools.architectures.rows import Rows, count, joined, paired
from lora_tools.architectures.translation import Fine, fine
from lora_tools.errors import FormatError, LoraToolsError
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Convolution, Embedding, Experts
from lora_tools.matching.layers import WEIGHT, decided, families_of
from lora_tools.matching.layers import sizes as stored_sizes
from lora_tools.matching.pieces import Piece, Site, Specs, exact
from lora_tools.matching.prefixes import Swap
from lora_tools.names import NUMBER


class Tabled(NamedTuple):
    """The sites that tables give, and what they take the files' prefixes for."""

    sites: dict[str, Site]
    swaps: tuple[Swap, ...] = ()
    undecided: Mapping[str, str] = {}
    """Why the tables say nothing of modules whose family is known."""


_Answer: TypeAlias = tuple[str, dict[str, Site]]
"""The base's prefix, and the sites behind it."""


class _There(NamedTuple):
    """A component of the base, read as one family in one dialect."""

    prefix: str
    candidate: Candidate
    specs: Specs
    numbers: Numbers


def tabled(
    modules: Sequence[Module],
    specs: Specs,
    config: Mapping[str, Any],
    hints: Hints,
) -> Tabled:
    """Return the sites of modules whose family both files are of, whatever dialects they have."""
    ours = {module.name: module for module in modules if _is_matrix(module)}
    sizes = {name: _size(module) for name, module in ours.items()}
    theirs = [there for there in detect(stored_sizes(specs), families.FAMILIES) if there.candidates]
    numbers = numbers_of(config)
    undecided: dict[str, str] = {}
    result = Tabled({}, (), undecided)
    swaps: dict[Swap, int] = {}
    shared = {dialect.family for there in theirs for dialect in there.candidates}
    for found in detect(sizes, families.FAMILIES) if theirs else ():
        here = found.among(lambda candidate: candidate.family in shared)
        if not here.candidates:
            continue

        def question(candidate: Candidate, here: Component = here) -> _Answer:
            places = [
                _There(there.prefix, dialect, specs, numbers)
                for there in theirs
                for dialect in there.candidates
                if dialect.family is candidate.family
            ]
            return _best([_sites(ours, here.paths[candidate], candidate, p) for p in places])

        def alike(candidate: Candidate, here: Component = here) -> Hashable:
            paths = [*here.paths[candidate].values()]
            fine = fine_paths(candidate, paths)
            places = tuple(
                (there.prefix, dialect.dialect == candidate.dialect, placing(dialect, fine))
                for there in theirs
                for dialect in there.candidates
                if dialect.family is candidate.family
            )
            return reading(candidate, paths), places

        try:
            prefix, sites = decided(here, question, hints, alike)
        except LoraToolsError as error:
            undecided |= dict.fromkeys(here.names, str(error))
            continue
        result.sites.update(sites)
        for name, site in sites.items():
            pair = _changed(name, site.pieces[0].key.removesuffix(WEIGHT))
            family = "" if pair else families_of(here, hints)
            swap = Swap(*(pair or (here.prefix, prefix)), 0, family)
            if pair != ("", ""):
                swaps[swap] = swaps.get(swap, 0) + 1
    return result._replace(swaps=tuple(s._replace(names=n) for s, n in swaps.items()))


def _changed(name: str, other: str) -> tuple[str, str] | None:
    """Return what stands before the same path in two names; None if the paths differ, too."""
    ours, theirs = name.split("."), other.split(".")
    same = 0
    while same < min(len(ours), len(theirs)) and ours[-1 - same] == theirs[-1 - same]:
        same += 1
    drop, add = (".".join([*words[: len(words) - same], ""]) for words in (ours, theirs))
    drop, add = drop.lstrip("."), add.lstrip(".")
    return None if not same or NUMBER.search(drop + add) else (drop, add)


def _is_matrix(module: Module) -> bool:
    """Whether tables say where its rows go.

    They do not of a convolution's groups, nor which side of square experts an adapter reads.
    """
    if isinstance(module.site, Experts):
        return module.out != module.inp
    return not isinstance(module.site, Convolution) or module.site.groups == 1


def _size(module: Module) -> Dimensions:
    if isinstance(module.site, Embedding):
        return Dimensions(module.inp, module.out)
    count = module.site.count if isinstance(module.site, Experts) else 1
    return Dimensions(module.out, module.inp, count)


def _best(answers: Sequence[_Answer]) -> _Answer:
    """Return the answer that places the most modules. Raises `FormatError` if several do."""
    most = max((len(sites) for _, sites in answers), default=0)
    if not most:
        return "", {}
    best = [answer for answer in answers if len(answer[1]) == most]
    if any(answer[1] != best[0][1] for answer in best):
        places = " and ".join(dict.fromkeys(prefix or "the top" for prefix, _ in best))
        raise FormatError(f"fits the base in several places: {places}")
    return best[0]


def _sites(
    modules: Mapping[str, Module], paths: Mapping[str, str], candidate: Candidate, there: _There
) -> _Answer:
    """Return the sites of modules in a component of the base; those that fit are in it."""
    found: dict[str, Site] = {}
    for name, path in paths.items():
        module = modules[name]
        if candidate == there.candidate and (
            site := exact(module, there.specs, f"{there.prefix}{path}")
        ):
            found[name] = site  # the same names: nothing moves
            continue
        try:
            parts, _ = fine({path: _size(module)}, candidate, there.numbers)
            pieces = tuple(piece for part in parts for piece in _pieces(module, part, there))
        except LoraToolsError:  # rows that do not divide, or as nobody has said
            continue
        if pieces and _covers(module, pieces):
            found[name] = Site(_joined(pieces))
    return there.prefix, found


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return the same pieces, those of neighbouring rows as one."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if (
            last is not None
            and not (last.transposed or piece.transposed)
            and (last.key, last.part, last.start + count(last.rows))
            == (piece.key, piece.part, piece.start)
        ):
            found[-1] = last._replace(rows=joined((*last.rows, *piece.rows)))
        else:
            found.append(piece)
    return tuple(found)


def _covers(module: Module, pieces: Sequence[Piece]) -> bool:
    """Whether every row of a module's updates has a place."""
    rows = (module.out if piece.transposed else count(piece.rows) for piece in pieces)
    return sum(rows) == module.out * (module.site.count if isinstance(module.site, Experts) else 1)


def _pieces(module: Module, part: Fine, there: _There) -> Iterator[Piece]:
    """Yield the places of one fine module's rows in a component of the base."""
    for position in positions(part.path, part.size, there.candidate):
        key = _key(position, there)
        if key is not None:
            yield from _rows(module, part, position, key, there)
            return


def _key(position: Position, there: _There) -> str | None:
    tensor = position.rule.layout.named("weight")
    key = f"{there.prefix}{position.path}" + (f".{tensor}" if tensor else "")
    return key if key in there.specs else None


def _rows(
    module: Module, part: Fine, position: Position, key: str, there: _There
) -> Iterator[Piece]:
    layout, shape = position.rule.layout, there.specs[key].shape
    stacked = layout.stacked or (part.copy > 0 and len(shape) == 3)
    if stacked and len(shape) == 3:
        first = position.member if layout.stacked else part.copy
        many, *matrix = shape
    else:
        first, many, matrix = 0, 1, [shape[0], math.prod(shape[1:])] if len(shape) > 1 else []
    if not matrix or first >= many:
        raise FormatError(f"{key} is not a matrix")
    out, inp = reversed(matrix) if layout.transposed else matrix
    if isinstance(module.site, Embedding):
        if shape != module.shape:
            raise FormatError(f"{key} has another shape")
        yield Piece(key, 0, (range(module.inp),), 0, True)
        return
    if inp != module.inp:
        raise FormatError(f"{key} has other columns")
    rows = layout.rows(out, inp, there.numbers)[position.part]
    if count(rows) != part.size.out:
        raise FormatError(f"{key} has other rows")
    if layout.transposed:
        whole = (range(module.out),)
        if rows != whole or part.place.rows != whole:
            raise FormatError(f"{key}: some columns of a transposed weight")
        yield Piece(key, part.place.member, (range(inp),), first * inp, True)
        return
    for start, own in _contiguous(part.place.rows, rows):
        yield Piece(key, part.place.member, own, first * out + start, False)


def _contiguous(update: Rows, weight: Rows) -> Iterator[tuple[int, Rows]]:
    """Yield runs of the weight's rows, by the first of each, and the update's rows that they get.

    >>> list(_contiguous((range(4),), (range(0, 4, 2), range(1, 4, 2))))
    [(0, (range(0, 1), range(2, 3), range(1, 2), range(3, 4)))]
    """
    pairs = [*paired(update, weight)]
    if any(at.step != 1 for _, at in pairs):
        pairs = [
            (range(row, row + 1), range(to, to + 1))
            for rows, at in pairs
            for row, to in zip(rows, at, strict=True)
        ]
    pairs.sort(key=lambda pair: pair[1].start)
    start, stop, own = pairs[0][1].start, pairs[0][1].start, list[range]()
    for rows, at in pairs:
        if at.start != stop:
            yield start, joined(own)
            start, own = at.start, []
        own.append(rows)
        stop = at.stop
    yield start, joined(own)
