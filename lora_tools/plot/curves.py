"""The curves of a picture: singular values by projection, and what a lower rank would cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_tools.grid import Grid
from lora_tools.plot.style import COLOURS, DASHES, RULE, SOFT, printable, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 16
"""Lines that can be told apart."""


def spectra(axes: "Axes", modules: Sequence[Mapping[str, Any]], found: Grid) -> None:
    """Draw the median σ / σ₁ of the most frequent projections, within their range."""
    groups: dict[int, list[list[float]]] = {}
    for module, place in zip(modules, found.places, strict=True):
        sigma = [s for s in (module.get("spectrum") or {}).get("sigma") or () if s and s > 0]
        if sigma and math.isfinite(sigma[0]):
            curve = [s / sigma[0] for s in sigma if s > 1e-12 * sigma[0]]
            groups.setdefault(place.column, []).append(curve)
    shown = sorted(groups)[:MOST]
    rest = f" ({len(groups) - MOST} more not shown)" if len(groups) > MOST else ""
    axes.set_title(f"σ / σ₁ by projection: median and range{rest}", loc="left", fontsize=9)
    if not groups:
        axes.set_axis_off()
        text = "all modules are zero or not finite"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
        return
    for n, column in enumerate(shown):
        curves = groups[column]
        length = max(map(len, curves))
        steps = [[curve[k] for curve in curves if k < len(curve)] for k in range(length)]
        x, middle = range(1, length + 1), list(map(statistics.median_low, steps))
        colour, dash = COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]
        shade = 0.1 if len(shown) <= len(COLOURS) else 0.04
        low, high = list(map(min, steps)), list(map(max, steps))
        axes.fill_between(x, low, high, color=colour, alpha=shade, lw=0)
        name, marker = short(printable(found.columns[column])), "o" if length == 1 else None
        axes.plot(x, middle, dash, color=colour, lw=1.5, label=name, marker=marker)
    _scale(axes, max(len(curve) for curves in groups.values() for curve in curves))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=7, labelcolor=SOFT)


def shrinking(axes: "Axes", ranks: Sequence[Mapping[str, Any]]) -> None:
    """Draw the error of the whole adapter against its rank."""
    x = [row["rank_after"] for row in ranks]
    lines = (
        ("optimal_error", "one rank for all", "o"),
        ("allocated_error", "ranks allocated", "D"),
    )
    for n, (key, name, marker) in enumerate(lines):
        y = [math.nan if row[key] is None else 100 * row[key] for row in ranks]
        axes.plot(x, y, DASHES[n], color=COLOURS[n], marker=marker, ms=4, lw=1.5, label=name)
    axes.set_title("relative error at lower ranks, %", loc="left", fontsize=9)
    axes.set_xlabel("rank")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, list(map(str, x)))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)


def _scale(axes: "Axes", last: int) -> None:
    """Give the spectra whole numbers from left to right and powers of ten from below."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    axes.set_xlabel("number of the singular value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    margin = max(0.3, last / 80)
    axes.set_xlim(1 - margin, last + margin)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    if high < 30 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(axis="y", color=RULE, lw=0.6)
