"""A diff for a terminal: tables with repeated layers in one line, the worst first, then words."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from lora_tools.linalg.compare import Spaces
from lora_tools.names import collapse, template
from lora_tools.report import NONE, percent, remarks, shape, table
from lora_tools.text import joined
from lora_tools.verbs.diff.differences import Differences, total
from lora_tools.verbs.diff.rows import DiffRow
from lora_tools.verbs.diff.words import sentences

MODULES = ("module", "shape", "rank", "scale", "A − B", "cosine", "columns", "rows", "outcome")
TENSORS = ("tensor", "shape", "dtype", "A − B", "outcome")


def text(found: Differences, *, full: bool = False) -> str:
    """Return the comparison as text; ``full`` gives each module a line of its own."""
    names = zip("AB", found.sources, found.formats, strict=True)
    blocks = [joined(f"{letter}: {source} ({format})" for letter, source, format in names)]
    if found.modules:
        lines = [_module(rows, found.tolerance) for rows in _groups(found.modules, found, full)]
        if len(found.modules) > 1:
            lines.append(_total(found))
        blocks.append(table(lines, MODULES))
    if tensors := [row for row in found.rows if row.kind == "tensor"]:
        lines = [_tensor(rows, found.tolerance) for rows in _groups(tensors, found, full)]
        blocks.append(table(lines, TENSORS))
    return "\n\n".join([*blocks, joined([*sentences(found), *remarks({}, found.notes)])])


def _groups(rows: Sequence[DiffRow], found: Differences, full: bool) -> list[list[DiffRow]]:
    def key(row: DiffRow) -> tuple[object, ...]:
        names = [(name or "") if full else template(name or "") for name in row.names]
        return (*names, *(shape or () for shape in row.shapes), row.outcome(found.tolerance))

    groups = [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]
    return sorted(groups, key=lambda group: -max(row.worst for row in group))


def _module(rows: list[DiffRow], tolerance: float) -> list[str]:
    figures = [row.figures for row in rows if row.figures]
    whole = total(figures)
    return [
        _name(rows),
        _change((_shape(x), _shape(y)) for x, y in (row.shapes for row in rows)),
        _change(row.ranks for row in rows),
        _change((_scale(x), _scale(y)) for x, y in (row.scales for row in rows)),
        share(whole.relative) if figures else NONE,
        NONE if whole.cosine is None else f"{whole.cosine:.4f}",
        _angles(part.columns for part in figures),
        _angles(part.rows for part in figures),
        _outcome(rows, tolerance),
    ]


def _total(found: Differences) -> list[str]:
    whole = found.total
    cosine = NONE if whole.cosine is None else f"{whole.cosine:.4f}"
    figures = [row.figures for row in found.modules if row.figures]
    spaces = [_angles(part.columns for part in figures), _angles(part.rows for part in figures)]
    title = f"total of {len(found.modules)} modules"
    return [title, "", "", "", share(whole.relative), cosine, *spaces, ""]


def _tensor(rows: list[DiffRow], tolerance: float) -> list[str]:
    return [
        _name(rows),
        _change((_shape(x), _shape(y)) for x, y in (row.shapes for row in rows)),
        _change(row.dtypes for row in rows),
        share(max(row.worst for row in rows)) if all(row.figures for row in rows) else NONE,
        _outcome(rows, tolerance),
    ]


def _name(rows: list[DiffRow]) -> str:
    return collapse([row.name for row in rows])


def _outcome(rows: list[DiffRow], tolerance: float) -> str:
    """Return the outcome that the rows share, and what else of them differs."""
    others = [
        name
        for name in ("magnitude", "bias")
        if any(row.figures and (getattr(row.figures, name) or 0) > tolerance for row in rows)
    ]
    outcome = rows[0].outcome(tolerance)
    if outcome == "same" and all(row.identical for row in rows):
        return "identical"
    return ", ".join([outcome, *others])


def _change(pairs: Iterable[tuple[object, object]]) -> str:
    """Write what A and B have, once if it is the same, with ranges where rows differ.

    >>> _change([(8, 4), (16, 4)]), _change([(8, 8)]), _change([(8, None)])
    ('8–16 → 4', '8', '8')
    """
    sides = [_span(values) for values in zip(*pairs, strict=True)]
    return " → ".join(dict.fromkeys(side for side in sides if side))


def _span(values: Iterable[object]) -> str:
    found = sorted({value for value in values if value is not None}, key=_order)
    return str(found[0]) if len(found) == 1 else "–".join(str(v) for v in (*found[:1], *found[-1:]))


def _order(value: object) -> tuple[float, str]:
    try:
        return float(str(value)), ""
    except ValueError:
        return math.inf, str(value)


def _shape(sizes: tuple[int, ...] | None) -> str | None:
    return None if sizes is None else shape(sizes)


def _scale(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _angles(spaces: Iterable[Spaces | None]) -> str:
    """Write the smallest and the largest angle in degrees."""
    angles = [math.degrees(angle) for space in spaces if space for angle in space.angles]
    if not angles:
        return NONE
    ends = dict.fromkeys(f"{angle:.3g}" for angle in (min(angles), max(angles)))
    return "–".join(ends) + "°"


def share(value: float) -> str:
    """Write a relative difference as a percentage, or as infinite."""
    return percent(value) if math.isfinite(value) else "∞"
