"""A picture of an inspection: a heat map of its modules, their spectra and the shrink curve."""

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.errors import PackageError
from lora_tools.grid import Grid, grid
from lora_tools.report import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#5b3f99", "#6b7280")
"""Told apart by the colour-blind (Okabe and Ito 2008), darker where white paper asks for it."""
DASHES = ("-", "--", ":", "-.")
INK, SOFT, RULE = "#1d2129", "#5d6470", "#dfe1e5"
FONT = "DejaVu Sans"
"""Comes with matplotlib, so that the picture is the same everywhere."""
MOST = 16
"""Spectra that can be told apart."""
SETTINGS: Any = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "lora-tools",
    "pdf.fonttype": 42,
}


def draw(document: Data, path: Path) -> None:
    """Draw an inspection (`lora-tools/inspect/1`) into a png, svg or pdf file.

    The same document makes the same bytes: no date is written. Settings and backend of a matplotlib
    that the caller uses stay as they are.

    Raises `PackageError` where the extra ``lora-tools[report]`` is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise PackageError("a picture needs matplotlib, which is not installed").hint(
            "Install it with: pip install 'lora-tools[report]'"
        ) from error
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context(SETTINGS):
        _figure(document).savefig(path, format=kind[1:], dpi=160, metadata=undated[kind])


def _figure(document: Data) -> "Figure":
    """Return the picture: the heat map above, spectra and the shrink curve below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    modules = document["modules"]
    found = grid([module["module"] for module in modules])
    spectrum = any(module.get("spectrum") for module in modules)
    upper = 1.2 + 0.21 * min(len(found.columns), 60) + 0.075 * _longest(found.labels)
    lower = 3.6 if spectrum else 0.0
    figure = Figure(
        figsize=(11, 0.9 + upper + lower),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        facecolor="white",
    )
    figure.suptitle(_title(document), x=0.012, ha="left", fontsize=10, linespacing=1.5)
    if not spectrum:
        _heat(figure, figure.subplots(), modules, found)
        return figure
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper, lower))
    _heat(above, above.subplots(), modules, found)
    curve = document.get("ranks")
    axes = below.subplots(
        1, 2 if curve else 1, squeeze=False, width_ratios=(3, 2)[: 1 + bool(curve)]
    )
    _spectra(axes[0][0], modules, found)
    if curve:
        _curve(axes[0][1], curve)
    return figure


def _title(document: Data) -> str:
    totals = document["totals"]
    name = str(document["source"]).rstrip("/").rpartition("/")[2] or document["source"]
    count = totals["modules"]
    parts = [
        f"{document['format']} adapter of {document['base_model'] or 'an unnamed base'}",
        f"{count:,} module{'' if count == 1 else 's'}",
        size(totals["bytes"]),
    ]
    if totals.get("norm") is not None:
        parts.append(f"‖ΔW‖ {totals['norm']:.4g}")
    if not any(module.get("spectrum") for module in document["modules"]):
        parts.append("norms and spectra come with --spectrum")
    return _printable(f"{name}") + "\n" + _printable(" · ".join(parts))


def _heat(figure: Any, axes: "Axes", modules: Sequence[Data], found: Grid) -> None:
    """Draw ‖ΔW‖ of each module, or its rank where no norm is known."""
    known = any((module.get("spectrum") or {}).get("norm") is not None for module in modules)
    cells = [[math.nan] * len(found.rows) for _ in found.columns]
    for module, place in zip(modules, found.places, strict=True):
        spectrum = module.get("spectrum") or {}
        value = spectrum.get("norm") if known else module["rank"]
        cells[place.column][place.row] = math.nan if value is None else value
        mark = {"zero": "0", "not finite": "×"}.get(spectrum.get("state", ""))
        if mark:
            axes.text(
                place.row + 0.5,
                place.column + 0.5,
                mark,
                ha="center",
                va="center",
                color="#d55e00",
                fontsize=7,
            )
    axes.set_title(
        "‖ΔW‖ of each module" if known else "rank of each module", loc="left", fontsize=9
    )
    axes.spines[:].set_visible(False)
    if not modules:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no modules", ha="center", transform=axes.transAxes)
        return
    values = [value for row in cells for value in row if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if low == high and len(modules) > 1:
        axes.set_title(f"{axes.get_title(loc='left')}: {low:.4g} for all", loc="left", fontsize=9)
    image = axes.pcolormesh(
        cells,
        cmap="viridis",
        vmin=low if low < high else low - 1,
        vmax=high if low < high else high + 1,
        edgecolors="white",
        linewidth=0.6 if len(found.rows) <= 80 else 0.15,
        antialiased=True,
    )
    _ticks(axes, found)
    if low < high:
        bar = figure.colorbar(
            image, ax=axes, fraction=0.03, pad=0.01, aspect=8 + 3 * min(len(found.columns), 30)
        )
        bar.outline.set_visible(False)


def _ticks(axes: "Axes", found: Grid) -> None:
    """Name as many layers and projections as can be read."""
    upright = _longest(found.labels) <= 3
    step = math.ceil(len(found.rows) / (50 if upright else 72))
    rows = range(0, len(found.rows), step)
    axes.set_xticks([n + 0.5 for n in rows], [_printable(found.labels[n]) for n in rows])
    axes.tick_params(length=0, labelsize=8 if len(found.rows) <= 40 else 6)
    axes.tick_params(axis="x", labelrotation=0 if upright else 90)
    jump = math.ceil(len(found.columns) / 60)
    columns = range(0, len(found.columns), jump)
    names = [_short(_printable(found.columns[n])) for n in columns]
    axes.set_yticks([n + 0.5 for n in columns], names, fontsize=7.5)
    axes.set_ylim(len(found.columns), 0)
    # A single module is a cell, not a bar across the page.
    axes.set_xlim(0, max(len(found.rows), 12))
    if upright and found.stem:
        axes.set_xlabel(_printable(f"layer of {found.stem}"), loc="left")


def _spectra(axes: "Axes", modules: Sequence[Data], found: Grid) -> None:
    """Draw the median singular values of each projection, within their range."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    groups: dict[int, list[list[float]]] = {}
    for module, place in zip(modules, found.places, strict=True):
        sigma = [s for s in (module.get("spectrum") or {}).get("sigma") or () if s and s > 0]
        if sigma and math.isfinite(sigma[0]):
            curve = [s / sigma[0] for s in sigma if s > 1e-12 * sigma[0]]
            groups.setdefault(place.column, []).append(curve)
    shown = sorted(groups)[:MOST]
    shade = 0.1 if len(shown) <= len(COLOURS) else 0.04
    for n, column in enumerate(shown):
        curves = groups[column]
        length = max(map(len, curves))
        steps = [[curve[k] for curve in curves if k < len(curve)] for k in range(length)]
        x = range(1, length + 1)
        colour, dash = COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]
        axes.fill_between(
            x, list(map(min, steps)), list(map(max, steps)), color=colour, alpha=shade, lw=0
        )
        middle = list(map(statistics.median_low, steps))
        name = _short(_printable(found.columns[column]))
        marker = "o" if length == 1 else None
        axes.plot(x, middle, dash, color=colour, lw=1.5, label=name, marker=marker)
    left = len(groups) - len(shown)
    title = "σ / σ₁ by projection: median and range"
    axes.set_title(title + (f" ({left} more not shown)" if left else ""), loc="left", fontsize=9)
    axes.set_xlabel("number of the singular value")
    if not groups:
        axes.set_axis_off()
        axes.text(
            0.5, 0.5, "all modules are zero or not finite", ha="center", transform=axes.transAxes
        )
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    if high < 30 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    last = max(len(curve) for curves in groups.values() for curve in curves)
    axes.set_xlim(1 - max(0.3, last / 80), last + max(0.3, last / 80))
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=7, labelcolor=SOFT)


def _curve(axes: "Axes", ranks: Sequence[Data]) -> None:
    """Draw the error of the whole adapter against its rank."""
    x = [row["rank"] for row in ranks]
    for n, (key, name) in enumerate(
        (("error", "one rank for all"), ("allocated_error", "ranks shared out"))
    ):
        y = [math.nan if row[key] is None else 100 * row[key] for row in ranks]
        axes.plot(x, y, DASHES[n], color=COLOURS[n], marker="oD"[n], ms=4, lw=1.5, label=name)
    axes.set_title("relative error at lower ranks, %", loc="left", fontsize=9)
    axes.set_xlabel("rank")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, list(map(str, x)))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)


def _longest(names: Sequence[str]) -> int:
    return max(map(len, names), default=0)


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _printable(text: str) -> str:
    """Return the text with what the font lacks replaced."""
    signs = _signs()
    return "".join(sign if ord(sign) in signs else "�" for sign in text)


@cache
def _signs() -> Set[int]:
    """Return the characters that the font of the picture has."""
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT)).get_charmap().keys()
