"""What stands before the same paths in two files: found for each of their components apart."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lora_tools.architectures.conventions import DEFAULT, modalities
from lora_tools.errors import FormatError, some
from lora_tools.names import NUMBER, template


class Prefix(NamedTuple):
    """What stands before the same paths in two files: ``drop`` in the one, ``add`` in the other."""

    drop: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        """Return the name as the other file has it, or None if it lacks what is to be dropped."""
        return self.add + name.removeprefix(self.drop) if name.startswith(self.drop) else None


class Swap(NamedTuple):
    """Names that begin with ``drop`` in one file and with ``add`` in the other."""

    drop: str
    add: str
    names: int
    """How many of them there are."""
    family: str = ""
    """The family whose tables match them, where the paths behind the prefixes differ, too."""

    def sentence(self, ours: str, theirs: str) -> str:
        """Return it as a note on two files.

        >>> Swap("", "model.", 2).sentence("adapter", "the base")
        "adapter: names begin with '' where those of the base begin with 'model.' (2 of them)."
        """
        more = f"; other paths, matched by the tables of {self.family}" if self.family else ""
        return (
            f"{ours}: names begin with {self.drop!r} where those of {theirs} begin with"
            f" {self.add!r} ({self.names:,} of them{more})."
        )

    @property
    def inverse(self) -> "Swap":
        """The same as the other file has it."""
        return self._replace(drop=self.add, add=self.drop)

    def to_dict(self) -> dict[str, str | int]:
        """Return it as plain data."""
        return {"from": self.drop, "to": self.add, "count": self.names, "family": self.family}


def listed(swaps: Mapping[str, Sequence[Swap]]) -> list[dict[str, str | int]]:
    """Return what changes before the names of several files, as plain data."""
    return [{"path": path, **swap.to_dict()} for path, each in swaps.items() for swap in each]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The prefix of each component of a file's names.

    A component is what is named before the first number, so that no prefix has one: layer 31 of
    one file is layer 31 of the other, or no layer at all.
    """

    found: Mapping[str, Prefix] = field(default_factory=dict)
    ties: tuple[Prefix, ...] = ()
    """Prefixes under which names of one component fit equally well."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a component has none, where its paths are those of another part of a model."""

    def __call__(self, name: str) -> str | None:
        """Return the name as the other file has it; as it is, if nothing is known of it."""
        prefix = self.found.get(component(name))
        return name if prefix is None else prefix(name)

    def check(self, what: str) -> "Prefixes":
        """Return the prefixes. Raises `FormatError`, naming the places, if some fit equally."""
        if self.ties:
            names = [prefix.add or prefix.drop or "the top" for prefix in self.ties]
            raise FormatError(f"{what} in several places: {some(names)}")
        return self

    def swaps(self, names: Iterable[str]) -> tuple[Swap, ...]:
        """Return what changes before these names, and how often."""
        counts: dict[Prefix, int] = {}
        for name in names:
            prefix = self.found.get(component(name), Prefix())
            if prefix != Prefix():
                counts[prefix] = counts.get(prefix, 0) + 1
        return tuple(Swap(*prefix, count) for prefix, count in counts.items())


def component(name: str) -> str:
    """Return what a name has before its first number, or before its last two words.

    >>> component("model.layers.11.self_attn.q_proj"), component("model.embed_tokens.weight")
    ('model.layers.', 'model.')
    """
    number = NUMBER.search(name)
    if number is not None:
        return name[: number.start()]
    return name[: _last_two(name)]


def align(
    items: Sequence[str | Iterable[str]], others: Collection[str], known: str = ""
) -> Prefixes:
    """Return the prefixes under which most items of each component are among others.

    An item is a name, or several of which one suffices. Of equal prefixes that which changes
    nothing is taken, else one that a larger component has, else all are ties. A prefix that drops
    words that name one part of a model for those of another is none; ``known``: which part the
    others are, as their configuration says it. Costs one look-up per item, name and prefix.
    """
    keys = {*others}
    components: dict[str, list[tuple[str, ...]]] = {}
    for item in items:
        names = (item,) if isinstance(item, str) else tuple(item)
        components.setdefault(component(names[0]), []).append(names)
    ends = _ends(keys)
    found: dict[str, Prefix] = {}
    refused: dict[str, str] = {}
    ties: tuple[Prefix, ...] = ()
    for before, members in sorted(components.items(), key=lambda pair: -len(pair[1])):
        counts = {Prefix(): sum(any(name in keys for name in names) for names in members)}
        for prefix, rest in _candidates(members, ends, found.values()):
            if reason := _contradiction(prefix, rest, known):
                refused.setdefault(before, reason)
            elif prefix not in counts:
                counts[prefix] = sum(any(prefix(n) in keys for n in names) for names in members)
        most = max(counts.values())
        if 2 * most < len(members) or not most:  # a few names that fit are no place
            continue
        best = [prefix for prefix, count in counts.items() if count == most]
        chosen = [prefix for prefix in (Prefix(), *found.values()) if prefix in best] or best
        if len({*chosen}) > 1 and chosen is best:
            ties = ties or tuple(sorted(best))
            continue
        found[before] = chosen[0]
        refused.pop(before, None)
    return Prefixes(found, ties, refused)


def _ends(keys: Iterable[str]) -> dict[str, dict[str, None]]:
    """Return what stands before each end of a name that begins no later than its numbers."""
    found: dict[str, dict[str, None]] = {}
    for key in {template(key): key for key in keys}.values():
        for start in _starts(key):
            found.setdefault(template(key[start:]), {})[key[:start]] = None
    return found


def _starts(name: str) -> Iterator[int]:
    """Yield where the path of a name may begin: at the word before its first number at the latest.

    The last word alone, which is ``weight`` of most names, says nothing.
    """
    yield 0
    number = NUMBER.search(name)
    last = name.rfind(".", 0, max(number.start() - 1, 0)) + 1 if number else _last_two(name)
    dot = name.find(".")
    while 0 <= dot < last:
        yield dot + 1
        dot = name.find(".", dot + 1)
    if number and last < number.start() and name[number.start() - 1] == ".":
        yield number.start()


def _last_two(name: str) -> int:
    """Return where the last two words of a name begin, or its only one."""
    last = name.rfind(".")
    return name.rfind(".", 0, last) + 1 if last > 0 else 0


def _candidates(
    members: Sequence[tuple[str, ...]],
    ends: Mapping[str, Mapping[str, None]],
    found: Iterable[Prefix],
) -> Iterator[tuple[Prefix, str]]:
    """Yield prefixes under which the longest possible end of a name is among others, and the end.

    One prefix in another's place needs layers that repeat, or a component that has it already.
    """
    swapped = {*found}
    for names in {template(names[0]): names for names in reversed(members)}.values():
        for name in names:
            for start in _starts(name):
                drop, rest = name[:start], name[start:]
                whole = NUMBER.match(rest) is not None
                prefixes = [
                    prefix
                    for add in ends.get(template(rest), ())
                    for prefix in [Prefix(drop, add)]
                    if not (whole and drop and add)
                    and (not (drop and add) or NUMBER.search(rest) or prefix in swapped)
                ]
                yield from ((prefix, rest) for prefix in prefixes)
                if prefixes:
                    break


def _contradiction(prefix: Prefix, rest: str, known: str) -> str:
    """Return why a prefix leads from one part of a model to another; "" if it does not."""
    here, there = modalities(prefix.drop), modalities(prefix.add)
    inside = modalities(rest) | modalities(known)
    lost = here - there - inside - DEFAULT
    gained = there - here - inside - DEFAULT if prefix.drop else frozenset()
    if not (lost or gained):
        return ""
    return (
        f"is under {prefix.drop or 'the top'}, the base has such names only under"
        f" {prefix.add or 'the top'}, another part of a model"
    )
