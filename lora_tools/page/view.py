"""What the page says in words and numbers: an inspection, made ready for the template."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lora_tools.grid import natural
from lora_tools.page import words
from lora_tools.report import size

Data = Mapping[str, Any]
MARKS = {"loads": "✓", "refused": "✕"}
WORDS = {"loads": "good", "refused": "bad"}


class Column(NamedTuple):
    """A column of the table: its title, what it is, a module's value and how that is written."""

    title: str
    help: str
    value: Callable[[Data], Any]
    write: Callable[[Any], str]


class Cell(NamedTuple):
    """A value to sort by, empty if there is none, and the text to show."""

    value: str
    text: str


def view(document: Data) -> dict[str, Any]:
    """Return all names that the template uses, the plain parts of the document among them."""
    modules = sorted(document["modules"], key=lambda module: natural(module["module"]))
    columns = _columns(modules)
    return {
        "document": document,
        "name": document["source"].rstrip("/").rpartition("/")[2] or document["source"],
        "tiles": _tiles(document),
        "spectrum": any(module.get("spectrum") for module in modules),
        "columns": columns,
        "rows": [(module, [_cell(column, module) for column in columns]) for module in modules],
        "kinds": sorted({module["kind"] for module in modules}),
        "states": sorted({flag for module in modules for flag in flags(module)}),
        "flags": flags,
        "line": line,
        "extras": _extras(document["tensors"]),
        "mark": lambda verdict: MARKS.get(verdict, "!"),
        "tone": lambda verdict: WORDS.get(verdict, "fair"),
    }


def flags(module: Data) -> list[str]:
    """Return what is remarkable about a module, in words."""
    spectrum = module.get("spectrum") or {}
    state = spectrum.get("state", "finite")
    parts = [part for part in module["parts"] if part not in ("a", "b")]
    twin = spectrum.get("duplicate_of")
    return [*([state] if state != "finite" else []), *parts, *(["duplicate"] if twin else [])]


def line(module: Data) -> str:
    """Return the singular values as points of a line, 60 by 16, three decades high; "" if none."""
    sigma = [s for s in (module.get("spectrum") or {}).get("sigma") or () if s and s > 0]
    if len(sigma) < 2:
        return ""
    step = 60 / (len(sigma) - 1)
    heights = (min(max(-math.log10(s / sigma[0]) / 3, 0.0), 1.0) for s in sigma)
    return " ".join(f"{n * step:.1f},{1 + 14 * height:.1f}" for n, height in enumerate(heights))


def _tiles(document: Data) -> list[tuple[str, str, str]]:
    """Return the figures to begin with: a title, a value and a remark."""
    totals, modules = document["totals"], document["modules"]
    dtypes = ", ".join(f"{name}" for name in totals["dtypes"])
    scales = words.span(module["scale"] for module in modules)
    tiles = [
        (
            "modules",
            words.number(totals["modules"]),
            words.plural(len(document["groups"]), "pattern"),
        ),
        ("rank", words.span(module["rank"] for module in modules), dtypes),
        ("scale", scales, document["scale_model"]),
        ("parameters", words.short(totals["params"]), _of(totals, "params")),
        ("size", size(totals["bytes"]), _of(totals, "bytes")),
    ]
    if totals.get("norm") is not None:
        tiles.append(("‖ΔW‖", words.number(totals["norm"]), "Frobenius norm of the whole update"))
    return tiles


def _of(totals: Data, key: str) -> str:
    whole = totals.get(f"base_{key}")
    return f"{words.share(totals[key] / whole)} of the base" if whole else ""


def _columns(modules: Sequence[Data]) -> list[Column]:
    """Return the columns that have something to show."""
    columns = [Column("rank", "", lambda m: m["rank"], words.number)]
    if any(module.get("spectrum") for module in modules):
        columns += [
            Column("‖ΔW‖", "Frobenius norm", _of_spectrum("norm"), words.number),
            Column("σ₁", "largest singular value", _of_spectrum("sigma_max"), words.number),
            Column("stable rank", "‖ΔW‖² / σ₁²", _of_spectrum("stable_rank"), words.number),
            Column(
                "eff. rank",
                "effective rank: exp of the entropy of σ",
                _of_spectrum("effective_rank"),
                words.number,
            ),
            Column("r 90 %", "rank for 90 % of the energy", _of_ranks("0.9"), words.number),
            Column("r 99 %", "rank for 99 % of the energy", _of_ranks("0.99"), words.number),
        ]
    if any(module["base_tensor"] for module in modules):
        columns.append(Column("‖ΔW‖/‖W‖", "of the base", lambda m: m["relative_norm"], words.share))
    columns.append(Column("shape", "output × input", lambda m: math.prod(m["shape"]), str))
    if len({module["kind"] for module in modules}) > 1:
        columns.append(Column("kind", "", lambda m: m["kind"], str))
    return [
        *columns,
        Column("alpha", "", lambda m: m["alpha"], words.number),
        Column("scale", "what b·a is multiplied by", lambda m: m["scale"], words.number),
        Column("dtype", "", lambda m: m["dtype"], str),
        Column("parameters", "", lambda m: m["params"], words.number),
    ]


def _of_spectrum(key: str) -> Callable[[Data], Any]:
    return lambda module: (module.get("spectrum") or {}).get(key)


def _of_ranks(share: str) -> Callable[[Data], Any]:
    return lambda module: ((module.get("spectrum") or {}).get("energy_ranks") or {}).get(share)


def _cell(column: Column, module: Data) -> Cell:
    value = column.value(module)
    if column.title == "shape":
        return Cell(str(value), words.shape(module["shape"]))
    empty = value is None or (isinstance(value, float) and not math.isfinite(value))
    return Cell("", words.NONE) if empty else Cell(str(value), column.write(value))


def _extras(extras: Sequence[Data]) -> list[tuple[str, list[Data], int]]:
    """Return the extras by kind, with their size in bytes."""
    found = sorted(extras, key=lambda extra: str(extra["kind"]))
    groups = ((kind, list(some)) for kind, some in groupby(found, lambda extra: extra["kind"]))
    return [(kind, some, sum(extra["bytes"] for extra in some)) for kind, some in groups]
