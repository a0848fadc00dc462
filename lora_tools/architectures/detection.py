"""Which family an adapter is of, decided for all of its modules at once."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

from lora_tools.architectures import families as known_families
from lora_tools.architectures.family import Family
from lora_tools.architectures.index import Candidate, PathMatch, everywhere, matches
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.tables import expand
from lora_tools.errors import FormatError, LoraToolsError, UnsupportedError, some

T = TypeVar("T")


class Hints(NamedTuple):
    """What is said of the base model beside the names."""

    base: str = ""
    """What the file calls it."""
    types: tuple[str, ...] = ()
    """Its ``model_type``, or its class in diffusers; of a pipeline, the classes of its models."""

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, *stated: str | None) -> "Hints":
        """Return what a configuration and names of the base model say; each may be missing."""
        config = config or {}
        text = config.get("text_config")
        own = text.get("model_type") if isinstance(text, Mapping) else None
        kinds = [own or config.get("model_type") or config.get("_class_name")]
        kinds += [pair[-1] for pair in config.values() if isinstance(pair, list) and len(pair) == 2]
        types = tuple(kind for kind in kinds if kind and isinstance(kind, str))
        return cls(" ".join(filter(None, stated)), types)


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Component:
    """The modules of an adapter that stand behind one prefix, and what knows the most of them."""

    prefix: str
    paths: Mapping[Candidate, Mapping[str, str]]
    """Families and dialects that know these modules, no others more of them: each one's paths."""
    likely: tuple[Candidate, ...] = ()
    """Those whose published models have as many blocks and columns as these modules show."""
    unmatched: tuple[str, ...] = ()
    """Names behind the same prefix that these families do not have."""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The families, each in a dialect, that it may be of."""
        return tuple(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that are known."""
        return tuple(next(iter(self.paths.values()), {}))

    @property
    def is_whole(self) -> bool:
        """Whether every module behind the prefix is known."""
        return bool(self.candidates) and not self.unmatched

    def among(self, kept: Callable[[Candidate], bool]) -> "Component":
        """Return the component with only some of its candidates."""
        paths = {candidate: each for candidate, each in self.paths.items() if kept(candidate)}
        return Component(self.prefix, paths, tuple(filter(kept, self.likely)), self.unmatched)

    def decide(self, question: Callable[[Candidate], T], hints: Hints = NO_HINTS) -> T:
        """Return the answer that all candidates give, or those that the base model leaves.

        Raises as `decision` does.
        """
        return self.decision(question, hints)[0]

    def decision(
        self, question: Callable[[Candidate], T], hints: Hints = NO_HINTS
    ) -> tuple[T, str]:
        """Return the answer that all candidates give, or those that the base model leaves.

        With it comes a sentence where the answer is a family's that is only the most usual of
        several, else "". A candidate for which the question raises a `FormatError` is none. Raises
        what it raises otherwise, and `UnsupportedError`, naming families, where those that are
        left contradict each other.
        """
        if not self.paths:
            raise UnsupportedError(f"{some(self.unmatched, 2)}: names that no known model has")
        named = _named(self.likely, hints) or _named(self.candidates, hints)
        left: dict[Candidate, T | LoraToolsError] = {}
        usual = _usual(named or self.candidates)
        for narrowed in (self.candidates, self.likely, named, usual):
            before = left
            answers = {candidate: _answer(question, candidate) for candidate in narrowed}
            fitting = {c: a for c, a in answers.items() if not isinstance(a, FormatError)}
            left = fitting or answers or left
            first, *more = left.values()
            if all(other == first for other in more):
                if isinstance(first, LoraToolsError):
                    raise first
                others = [candidate for candidate, other in before.items() if other != first]
                return first, self._guess(left, others) if narrowed is usual else ""
        raise UnsupportedError(
            f"{some(self.names, 2)}: these names are those of {' and of '.join(_families(left))},"
            " which lay them out differently"
        ).hint("Give the base model, whose config.json says which it is: --base MODEL.")

    def _guess(self, taken: Collection[Candidate], others: Collection[Candidate]) -> str:
        """Say which family was taken, and which others were not, being like it and rarer."""
        return (
            f"{len(self.names)} modules are taken for those of {' or '.join(_families(taken))}:"
            f" {' and '.join(_families(others))} would lay them out otherwise, and neither the"
            " number of blocks nor a base model says which it is. --base MODEL does."
        )


def _answer(question: Callable[[Candidate], T], candidate: Candidate) -> T | LoraToolsError:
    try:
        return question(candidate)
    except LoraToolsError as error:
        return error


def _families(candidates: Collection[Candidate]) -> list[str]:
    return list(dict.fromkeys(candidate.family.name for candidate in candidates))


def _usual(candidates: Collection[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates of which none is like another."""
    names = {candidate.family.name for candidate in candidates}
    return tuple(candidate for candidate in candidates if candidate.family.like not in names)


def _named(candidates: Collection[Candidate], hints: Hints) -> tuple[Candidate, ...]:
    """Return the candidates that the hints mean."""

    def meant(family: Family) -> bool:
        by_name = bool(family.named and re.search(family.named, hints.base.lower()))
        return by_name or not {*hints.types}.isdisjoint(family.types)

    return tuple(candidate for candidate in candidates if meant(candidate.family))


def detect(
    modules: Mapping[str, Dimensions | None], families: Iterable[Family] | None = None
) -> tuple[Component, ...]:
    """Return the components of an adapter, by the names of its modules and their sizes.

    A family is taken for all modules behind a prefix or for none: the one that knows the most of
    them, by name, by rows per column and by number of blocks. Names that no family knows come
    last, behind the prefix "". ``families``: those to choose from, by default all.
    """
    among = known_families.FAMILIES if families is None else families
    return tuple(_components(dict(modules), tuple(among)))


def _components(
    left: dict[str, Dimensions | None], families: tuple[Family, ...]
) -> Iterator[Component]:
    covers = _covers(left, families)
    while left:
        sizes = {
            (prefix, candidate): len(names)
            for prefix, known in covers.items()
            for candidate, names in known.items()
        }
        if not sizes:
            yield Component("", {}, unmatched=tuple(left))
            return
        # Of equal covers the longest prefix: what it leaves are paths, not paths behind a word.
        prefix, first = max(sizes, key=lambda pair: (sizes[pair], len(pair[0])))
        paths = covers[prefix][first]
        best = {c: own for c, own in covers[prefix].items() if own.keys() == paths.keys()}
        behind = [name for name in left if name.startswith(prefix)]
        if not prefix:  # where nothing stands before the paths, what is behind another prefix
            others = tuple(p for p, known in covers.items() if p and known)
            behind = [name for name in behind if not name.startswith(others)]
        unmatched = tuple(name for name in behind if name not in paths)
        likely = tuple(c for c, own in best.items() if _is_likely(c, own, left))
        flat = prefix.endswith("_")  # else a path is what follows the prefix, dot for dot
        named = {
            candidate: {
                name: each.path if flat else name[len(prefix) :] for name, each in own.items()
            }
            for candidate, own in best.items()
        }
        yield Component(prefix, named, likely, unmatched)
        gone = {*paths, *unmatched}
        left = {name: size for name, size in left.items() if name not in gone}
        covers = {prefix: _without(known, gone) for prefix, known in covers.items()}


def _without(
    known: Mapping[Candidate, Mapping[str, PathMatch]], gone: Collection[str]
) -> dict[Candidate, dict[str, PathMatch]]:
    found = {
        candidate: {name: match for name, match in own.items() if name not in gone}
        for candidate, own in known.items()
    }
    return {candidate: own for candidate, own in found.items() if own}


def _covers(
    modules: Mapping[str, Dimensions | None], families: tuple[Family, ...]
) -> dict[str, dict[Candidate, dict[str, PathMatch]]]:
    """Return what each family and dialect knows, by the prefix before it."""
    found: dict[str, dict[Candidate, dict[str, PathMatch]]] = {}
    prefixes = _prefixes(families)
    flattened = tuple(prefix for prefix in prefixes if prefix.endswith("_"))
    dotless = {n: s for n, s in modules.items() if "." not in n and n.startswith(flattened)}
    dotted = {name: size for name, size in modules.items() if name not in dotless}
    for prefix, members in prefixes.items():
        flat = prefix in flattened
        for name, size in (dotless if flat else dotted).items():
            if not name.startswith(prefix):
                continue
            for candidate, match in everywhere(name[len(prefix) :], members, flat=flat):
                if match.layout.fits(size) and _within(match, candidate.family):
                    own = found.setdefault(prefix, {}).setdefault(candidate, {})
                    own.setdefault(name, match)
    return found


@cache
def _prefixes(families: tuple[Family, ...]) -> dict[str, tuple[Family, ...]]:
    """Return everything that may stand before the paths of a model, and the families it may be."""
    found: dict[str, list[Family]] = {}
    encoders = {encoder for family in families for encoder in family.encoders}
    names = {encoder.family for encoder in encoders}
    for family in families:
        prefixes = {container.prefix for container in family.containers.values()}
        prefixes |= {f"{folder}." for folder in family.siblings}
        if family.name in names:  # whichever place it has in a pipeline
            prefixes |= {prefix for encoder in encoders for prefix in encoder.prefixes}
        for prefix in prefixes:
            found.setdefault(prefix, []).append(family)
    return {prefix: tuple(members) for prefix, members in found.items()}


def known(path: str, size: Dimensions | None, candidate: Candidate) -> PathMatch | None:
    """Return the rule of a module, by path, rows per column and number of blocks; None if none."""
    for match in matches(path, candidate):
        if match.layout.fits(size) and _within(match, candidate.family):
            return match
    return None


def _within(match: PathMatch, family: Family) -> bool:
    """Whether a module's block is one of as many as the family's largest model has."""
    if not family.blocks:
        return True
    block = _block(match)
    return block is None or block[1] < max(family.blocks.get(block[0], (block[1] + 1,)))


def _block(match: PathMatch) -> tuple[str, int] | None:
    """Return what is numbered in a fine path, and the number."""
    stack, hash, _ = match.layout.parts[0].path.partition(".#")
    return (stack, int(match.numbers[0])) if hash and match.numbers else None


def _is_likely(
    candidate: Candidate, matches: Mapping[str, PathMatch], sizes: Mapping[str, Dimensions | None]
) -> bool:
    """Whether one of the family's models has as many blocks, and columns, as modules show."""
    family, last = candidate.family, dict[str, int]()
    if not family.blocks and not family.columns:
        return True
    for name, match in matches.items():
        if block := _block(match):
            last[block[0]] = max(block[1], last.get(block[0], 0))
        size, fine = sizes[name], match.layout.parts[0].path
        for ends, widths in family.columns.items() if size else ():
            if size is not None and fine.endswith(expand(ends)) and size.inp not in widths:
                return False
    return all(last.get(stack, -1) + 1 in counts for stack, counts in family.blocks.items())
