"""Names of modules: by pattern, collapsed for people, and as another file spells their paths."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import NamedTuple

NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
"""A number that is a word of its own, as in layers.11, blocks_0_attn and unet:3:up."""

LONGEST = 18
"""Digits of a number that is counted."""

WORDS = 32
"""Words at the end of a name that are looked for in others; modules of models have about ten."""

MANY = 20
"""Prefixes that do equally well, beyond which no more are looked for."""


def matches(pattern: str, name: str) -> bool:
    """Whether a shell-style pattern fits the whole name, or its end from a dot on.

    >>> matches("q_proj", "layers.0.q_proj"), matches("layers.1?.*", "layers.12.q_proj")
    (True, True)
    >>> matches("proj", "layers.0.q_proj")
    False
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def template(name: str) -> str:
    """Return the name with its numbers blanked, the same for every repetition of a layer.

    >>> template("model.layers.11.self_attn.q_proj")
    'model.layers.[].self_attn.q_proj'
    """
    return NUMBER.sub("[]", name)


def collapse(names: Sequence[str]) -> str:
    """Write names of one template as one name with ranges.

    >>> collapse(["layers.0.q", "layers.1.q", "layers.2.q", "layers.5.q"])
    'layers.[0..2,5].q'
    """
    numbers = [NUMBER.findall(name) for name in names]
    if len({len(found) for found in numbers}) > 1:  # some have a blank of their own
        return template(names[0])
    columns = iter(zip(*numbers, strict=True))
    return NUMBER.sub(lambda _: _column(next(columns)), names[0])


def _column(column: Sequence[str]) -> str:
    """Return the numbers at one place of all names, in ranges."""
    if max(map(len, column)) > LONGEST:  # no layer's
        return column[0] if len({*column}) == 1 else "[…]"
    width = len(column[0]) if column[0].startswith("0") else 0  # 007 stays 007
    values = sorted({int(value) for value in column})
    return f"{values[0]:0{width}}" if len(values) == 1 else f"[{_ranges(values, width)}]"


def _ranges(values: Iterable[int], width: int) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(
        f"{run[0]:0{width}}" if len(run) == 1 else f"{run[0]:0{width}}..{run[-1]:0{width}}"
        for run in runs
    )


class Prefix(NamedTuple):
    """What stands before the same paths in two files: ``drop`` in the one, ``add`` in the other."""

    drop: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        """Return the name as the other file has it, or None if it lacks what is to be dropped."""
        return self.add + name.removeprefix(self.drop) if name.startswith(self.drop) else None


def align(names: Sequence[str], others: Collection[str]) -> tuple[Prefix, ...]:
    """Return the prefixes that find the most names among others, all that do equally well.

    Names that are found as they are need no prefix. No result means that none is found, several
    that the names fit in several places, of which at most `MANY` are returned.

    Costs O(names + others), whatever they are.

    >>> align(["layers.0.q", "layers.1.q"], {"model.layers.0.q", "model.layers.1.q", "head"})
    (Prefix(drop='', add='model.'),)
    """
    found, wanted = frozenset(others), Counter(names)
    drops = _drops(names, found)
    rests: dict[str, Counter[str]] = defaultdict(Counter)
    for name, count in wanted.items():
        for start in _starts(name):
            if name[:start] in drops:
                rests[name[:start]][name[start:]] += count
    adds = _adds({rest for each in rests.values() for rest in each}, found)
    most = unchanged = sum(count for name, count in wanted.items() if name in found)
    best: list[Prefix] = []
    # Before thousands of unlike names may stand the same ends: they are counted once.
    winners: dict[tuple[frozenset[str], frozenset[tuple[str, int]]], _Winners] = {}
    for drop, ends in sorted(rests.items(), key=lambda item: (-item[1].total(), item[0])):
        if ends.total() < most + (len(best) >= MANY):
            break  # nor can those that fewer names begin with do any better
        key = frozenset(drops[drop]), frozenset(ends.items())
        if key not in winners:
            winners[key] = _winners(drops[drop], ends, adds)
        if winners[key].finds > most:
            most, best = winners[key].finds, []
        if winners[key].finds == most:
            best = [*best, *(Prefix(drop, add) for add in winners[key].adds)][:MANY]
    if not most:
        return ()
    return (Prefix(),) if unchanged == most else tuple(sorted(best))


def _drops(names: Sequence[str], others: Set[str]) -> dict[str, set[str]]:
    """Return what names may lose to be among others, with the ends by which that was seen.

    The longest possible end of a name of each template decides. The last word alone, which is
    ``weight`` of most names, says nothing.
    """
    examples = {template(name): name for name in reversed(names)}.values()
    starts = {name: _starts(name)[:-1] or [0] for name in examples}
    adds = _adds({name[start:] for name in examples for start in starts[name]}, others)
    drops: dict[str, set[str]] = defaultdict(set)
    for name in examples:
        known = (start for start in starts[name] if name[start:] in adds)
        if (start := next(known, None)) is not None:
            drops[name[:start]].add(name[start:])
    return drops


class _Winners(NamedTuple):
    """What is best put before some ends, and how many of them it finds."""

    finds: int
    adds: list[str]


def _winners(examples: Set[str], ends: Mapping[str, int], adds: Mapping[str, Set[str]]) -> _Winners:
    """Return the best of what stands before the examples in other names."""
    allowed = set[str]().union(*(adds.get(end, set()) for end in examples))
    counts: Counter[str] = Counter()
    for end, count in ends.items():
        for add in allowed & adds.get(end, set()):
            counts[add] += count
    high = max(counts.values(), default=0)
    return _Winners(high, sorted(add for add in counts if counts[add] == high)[:MANY])


def _adds(ends: Set[str], others: Iterable[str]) -> dict[str, set[str]]:
    """Return what stands before each end in the others that have it."""
    adds: dict[str, set[str]] = defaultdict(set)
    for other in others:
        for start in _starts(other):
            if (end := other[start:]) in ends:
                adds[end].add(other[:start])
    return adds


def _starts(name: str) -> list[int]:
    """Return where a name begins, and each of its last words."""
    return [0, *[dot.end() for dot in re.finditer(r"\.", name)][-WORDS:]]
