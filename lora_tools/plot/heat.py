"""The heat map of a picture: layers from left to right, projections from top to bottom."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_tools.grid import Grid
from lora_tools.plot.style import printable, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"zero": "0", "not finite": "×"}


def height(found: Grid) -> float:
    """Return how many inches the heat map needs."""
    return 1.2 + 0.21 * min(len(found.columns), 60) + 0.075 * _longest(found)


def heat(axes: "Axes", modules: Sequence[Mapping[str, Any]], found: Grid) -> None:
    """Draw ‖ΔW‖ of each module, or its rank where no norm is known."""
    spectra = [module.get("spectrum") or {} for module in modules]
    known = any(spectrum.get("norm") is not None for spectrum in spectra)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": "#d55e00"}
    cells = [[math.nan] * len(found.rows) for _ in found.columns]
    for module, spectrum, (row, column) in zip(modules, spectra, found.places, strict=True):
        value = spectrum.get("norm") if known else module["rank"]
        if value is not None and math.isfinite(value):
            cells[column][row] = value
        if mark := MARKS.get(spectrum.get("state", "")):
            axes.text(row + 0.5, column + 0.5, mark, style)
    axes.spines[:].set_visible(False)
    if not modules:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no modules", ha="center", transform=axes.transAxes)
        return
    values = [value for row in cells for value in row if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    title = f"{'‖ΔW‖' if known else 'rank'} of each module"
    states = {spectrum.get("state") for spectrum in spectra}
    legend = ", ".join(f"{mark} {state}" for state, mark in MARKS.items() if state in states)
    title += f" ({legend})" if legend else ""
    title += f": {low:.4g} for all" if low == high and len(modules) > 1 else ""
    axes.set_title(title, loc="left", fontsize=9)
    image = axes.pcolormesh(
        cells,
        cmap="viridis",
        vmin=low if low < high else low - 1,
        vmax=high if low < high else high + 1,
        edgecolors="white",
        linewidth=0.6 if len(found.rows) <= 80 else 0.15,
        antialiased=True,
    )
    _name(axes, found)
    if low < high:
        aspect = 8 + 3 * min(len(found.columns), 30)
        bar = axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, aspect=aspect)
        bar.outline.set_visible(False)


def _name(axes: "Axes", found: Grid) -> None:
    """Name as many layers and projections as can be read."""
    upright = _longest(found) <= 3
    rows = range(0, len(found.rows), math.ceil(len(found.rows) / (50 if upright else 72)))
    axes.set_xticks([n + 0.5 for n in rows], [printable(found.labels[n]) for n in rows])
    axes.tick_params(length=0, labelsize=8 if len(found.rows) <= 40 else 6)
    axes.tick_params(axis="x", labelrotation=0 if upright else 90)
    columns = range(0, len(found.columns), math.ceil(len(found.columns) / 60))
    names = [short(printable(found.columns[n])) for n in columns]
    axes.set_yticks([n + 0.5 for n in columns], names, fontsize=7.5)
    axes.set_ylim(len(found.columns), 0)
    # A single module is a cell, not a bar across the page.
    axes.set_xlim(0, max(len(found.rows), 12))
    if upright and found.prefix:
        axes.set_xlabel(printable(f"layer of {found.prefix}"), loc="left")


def _longest(found: Grid) -> int:
    return max(map(len, found.labels), default=0)
