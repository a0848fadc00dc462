"""Inspections and listings as text for a terminal, from the same data that JSON has."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lora_tools.report import NONE, percent, ranks_table, shape, size, span, table
from lora_tools.text import joined, label, visible
from lora_tools.verbs.inspect.groups import Group, groups

BARS = "▁▂▃▄▅▆▇█"
BINS = 16
"""Columns of a sparkline, at most."""


def to_text(document: Mapping[str, Any], *, full: bool = False) -> str:
    """Return an inspection as text; ``full`` gives each module a line of its own."""
    modules = document["modules"]
    found = [Group((module,)) for module in modules] if full else groups(modules)
    blocks = [_facts(document), _modules(found)]
    if any(module["spectrum"] for module in modules):
        blocks += [_spectra(found), ranks_table(document["ranks"] or ()), _suggestion(document)]
    return "\n\n".join(block for block in [*blocks, joined(_remarks(document))] if block)


def listing_text(document: Mapping[str, Any]) -> str:
    """Return a listing as text."""
    totals = document["totals"]
    unknown = "an adapter that is not understood" if document["is_adapter"] else "a checkpoint"
    what = document["architecture"] or unknown
    lines = [
        (
            _short(group["pattern"]),
            group["count"],
            shape(group["shape"]),
            group["dtype"],
            f"{group['params']:,}",
            size(group["bytes"]),
        )
        for group in document["groups"]
    ]
    headers = ("tensor", "count", "shape", "dtype", "parameters", "size")
    align = ("left", "right", "left", "left", "right", "right")
    return "\n\n".join(
        [
            visible(f"{document['source']}: {label(what)}"),
            table(lines, headers, align=align),
            f"{totals['tensors']} tensors, {totals['params']:,} parameters, "
            f"{size(totals['bytes'])}, {_counts(totals['dtypes'])}",
        ]
    )


def sparkline(values: Sequence[float], bins: int = BINS) -> str:
    """Draw values from 0 to the first, each column the mean of its share of them.

    >>> sparkline([4.0, 3.0, 2.0, 1.0, 0.0])
    '█▇▅▃▁'
    """
    count = min(bins, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [math.fsum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    top = max(values[0], 1e-300)
    return "".join(BARS[min(int(mean / top * len(BARS)), len(BARS) - 1)] for mean in means)


def _facts(document: Mapping[str, Any]) -> str:
    totals, made = document["totals"], document["trained_by"]
    variants = f" ({', '.join(document['variants'])})" if document["variants"] else ""
    base = document["base_model"]
    of = f" of {label(base)}" if base else ", its base not named"
    holds = (
        f"{totals['modules']} modules, {totals['params']:,} parameters, {size(totals['bytes'])},"
        f" {_counts(totals['dtypes'])}"
    )
    if totals["base_params"]:
        holds += f"; {percent(totals['params'] / totals['base_params'])} of the base's parameters"
    facts = [("task", document["task"]), ("scale", document["scale_model"]), ("holds", holds)]
    if totals["norm"] is not None:
        facts.append(("‖ΔW‖", f"{totals['norm']:.4g}"))
    facts += [("made by" if i == 0 else "", ": ".join(pair)) for i, pair in enumerate(made)]
    lines = [f"  {title:<8} {label(value)}" for title, value in facts if value]
    return joined([f"{document['source']}: {document['format']} adapter{variants}{of}", *lines])


def _modules(found: Iterable[Group]) -> str:
    lines = [
        (
            _short(group.pattern),
            len(group.modules),
            shape(head["shape"]),
            head["rank"],
            NONE if head["alpha"] is None else f"{head['alpha']:g}",
            f"{head['scale']:.4g}",
            head["dtype"],
            f"{sum(module['params'] for module in group.modules):,}",
        )
        for group in found
        for head in group.modules[:1]
    ]
    headers = ("module", "count", "shape", "rank", "alpha", "scale", "dtype", "parameters")
    align = ("left", "right", "left", "right", "right", "right", "left", "right")
    return table(lines, headers, align=align) if lines else ""


def _spectra(found: Sequence[Group]) -> str:
    compared = any(module["base_tensor"] for group in found for module in group.modules)
    lines = [(_short(group.pattern), *_figures(group, compared=compared)) for group in found]
    headers = ["module", "‖ΔW‖", "σ₁", "stable rank", "eff. rank", "90 / 95 / 99 / 99.9 %", "σ"]
    if compared:
        headers.append("‖ΔW‖/‖W‖")
    return table(lines, headers)


def _figures(group: Group, *, compared: bool) -> list[str]:
    spectra = [module["spectrum"] for module in group.modules]
    sound = [figures for figures in spectra if figures["state"] == "finite"]
    others = Counter(figures["state"] for figures in spectra if figures["state"] != "finite")
    left = ", ".join(f"{count} {state}" for state, count in others.items())
    if not sound:
        return [left, *[""] * (5 + compared)]
    shares = list(sound[0]["energy_ranks"])
    ranks = " / ".join(
        _span([figures["energy_ranks"][share] for figures in sound]) for share in shares
    )
    squares = zip(*([value**2 for value in figures["sigma"]] for figures in sound), strict=True)
    cells = [_span([figures[field] for figures in sound]) for field in SPANS]
    cells += [ranks, sparkline([math.sqrt(math.fsum(column)) for column in squares])]
    if compared:
        ratios = [module["relative_norm"] for module in group.modules]
        cells.append(_span(ratio for ratio in ratios if ratio is not None))
    cells[0] += f" ({left})" if left else ""
    return cells


SPANS = ("norm", "sigma_max", "stable_rank", "effective_rank")


def _suggestion(document: Mapping[str, Any]) -> str:
    suggestion, uniform_ranks = document["suggestion"], document["ranks"]
    if suggestion:
        return joined([suggestion["text"], f"  {suggestion['arguments']}"])
    if not uniform_ranks or len(uniform_ranks) < 2:
        return ""
    below = uniform_ranks[-2]
    kept = percent(1 - below["optimal_error"] ** 2)
    return f"No smaller rank keeps 99 % of the energy: rank {below['rank_after']} keeps {kept}."


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    kinds = Counter(extra["kind"] for extra in document["tensors"])
    for kind, count in kinds.items():
        keys = [extra["tensor"] for extra in document["tensors"] if extra["kind"] == kind]
        nbytes = sum(extra["bytes"] for extra in document["tensors"] if extra["kind"] == kind)
        yield f"also: {count} × {kind}, {size(nbytes)}: {_some(keys)}"
    twins = [
        f"{module['module']} = {figures['duplicate_of']}"
        for module in document["modules"]
        if (figures := module["spectrum"]) and figures["duplicate_of"]
    ]
    for title, names in (
        ("zero", _in_state(document, "zero")),
        ("duplicates", twins),
        ("without a weight in the base", document["unmatched"] or ()),
        (
            "weights of another shape",
            [
                f"{found['module']} is {shape(found['shape'])}, {found['base_tensor']}"
                f" {shape(found['base_shape']) if found['base_shape'] else 'is missing'}"
                for found in document["misshapen"] or ()
            ],
        ),
    ):
        if names:
            yield f"{title}: {len(names)}: {_some(names)}"
    yield from (f"note: {note}" for note in document["notes"])
    yield from (f"problem: {problem}" for problem in document["problems"])


def _in_state(document: Mapping[str, Any], state: str) -> list[str]:
    modules = document["modules"]
    return [m["module"] for m in modules if m["spectrum"] and m["spectrum"]["state"] == state]


def _short(pattern: str) -> str:
    """Leave out the middle of long lists of numbers."""
    return re.sub(r"(\[(?:[^],]+,){3})(?:[^],]+,){2,}([^],]+\])", r"\1…,\2", pattern)


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(map(label, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _counts(dtypes: Mapping[str, int]) -> str:
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return ", ".join(f"{count} × {dtype}" for dtype, count in dtypes.items())


def _span(values: Iterable[float]) -> str:
    return span(values, ".3g")
