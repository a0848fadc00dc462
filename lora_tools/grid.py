"""Modules laid out as a grid: a row for each layer, a column for each projection."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

OUTSIDE = "outside the layers"
DEEPEST = 64
"""Words of a path that are looked at for layers."""
WIDTH = 20
"""Characters that a label should fit in."""


class GridPosition(NamedTuple):
    """Where a module stands."""

    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns in the order of reading, and a place for each module."""

    prefix: str
    """What the paths of all layers begin with; said once instead of in every label."""
    rows: tuple[str, ...]
    """The paths of the layers; modules outside of all layers share the last row."""
    labels: tuple[str, ...]
    """The rows in short, all different."""
    columns: tuple[str, ...]
    """The projections: what follows a layer's path, the most frequent first."""
    places: tuple[GridPosition, ...]
    """In the order of the names; no two are the same unless two names are."""


def grid(names: Sequence[str]) -> Grid:
    """Lay out modules by their names alone.

    A layer is what ends in a number and holds several modules, the innermost of its kind. A number
    that belongs to a single module (``to_out.0``, ``ff.net.0.proj``) is part of the projection.

    >>> found = grid(["layers.0.q", "layers.0.to_out.0", "layers.10.q", "layers.9.q", "head"])
    >>> found.prefix, found.labels, found.columns
    ('layers', ('0', '9', '10', 'outside the layers'), ('q', 'head', 'to_out.0'))
    >>> found.places[1]
    GridPosition(row=0, column=2)
    """
    # Kohya flattens paths: underscores part names only where no name has a dot.
    separator = "." if any("." in name for name in names) else "_"
    inside: dict[str, set[str]] = {}
    for name in names:
        for layer, projection in _cuts(name, separator):
            inside.setdefault(layer, set()).add(projection)
    parted = [_part(name, separator, inside) for name in names]
    layers = {layer for layer, _ in parted if layer}
    rows = sorted(layers, key=lambda layer: (natural(layer), layer))
    prefix, labels = _labels(rows, separator)
    if len(layers) < len({layer for layer, _ in parted}):
        rows, labels = [*rows, ""], [*labels, OUTSIDE]
    counts = Counter(projection for _, projection in parted)
    columns = sorted(counts, key=lambda column: (-counts[column], natural(column), column))
    row, column = ({key: at for at, key in enumerate(keys)} for keys in (rows, columns))
    return Grid(
        prefix=prefix,
        rows=tuple(layer or OUTSIDE for layer in rows),
        labels=tuple(labels),
        columns=tuple(columns),
        places=tuple(GridPosition(row[layer], column[projection]) for layer, projection in parted),
    )


def _part(name: str, separator: str, inside: dict[str, set[str]]) -> tuple[str, str]:
    """Return the layer and the projection that a name consists of; no layer if there is none."""
    cuts = list(_cuts(name, separator))
    blocks = [cut for cut in cuts if len(inside[cut[0]]) > 1]
    return (blocks or cuts or [("", name)])[-1]


def _cuts(name: str, separator: str) -> Iterator[tuple[str, str]]:
    """Yield what stands up to each number of a name, and what follows if it has a word in it."""
    parts = name.split(separator)
    if len(parts) > DEEPEST:
        return  # no path of a module
    for at, part in enumerate(parts, start=1):
        if _number(part) and not all(map(_number, parts[at:])):
            yield separator.join(parts[:at]), separator.join(parts[at:])


def _number(part: str) -> bool:
    return part.isascii() and part.isdecimal()


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that puts layer 9 before layer 10, however long a number is."""
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if _number(part) else (1, 0, part)
        for part in name.split("." if "." in name else "_")
    )


def _labels(rows: Sequence[str], separator: str) -> tuple[str, list[str]]:
    """Return what all rows begin with, and the rows without it, their words cut if need be."""
    paths = [row.split(separator) for row in rows]
    shared = 0
    least = min((len(path) for path in paths), default=1) - 1
    while shared < least and len({path[shared] for path in paths}) == 1:
        shared += 1
    prefix = ".".join(paths[0][:shared]) if paths else ""
    labels = [".".join(path[shared:]) for path in paths]
    for most in (12, 8, 6, 4):
        if max(map(len, labels), default=0) <= WIDTH:
            break
        cut = [".".join(part.split("_")[0][:most] for part in path[shared:]) for path in paths]
        if len(set(cut)) < len(cut):
            break
        labels = cut
    return prefix, labels
