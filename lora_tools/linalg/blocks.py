"""Updates of some rows of a weight, and of weights that stand one upon the other, from factors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_tools.scaling import alpha_at
from lora_tools.shapes import Float
from lora_tools.update import Array, Biased, DoRA, LowRank, Update, factors

Rows = tuple[range, ...]
"""Runs of rows, in the order in which they are wanted."""


def sliced(update: LowRank, rows: Rows) -> LowRank:
    """Return the update of some rows of the weight: their rows of B, and what of A they use.

    A column of B without a number in these rows goes, and its row of A with it: of a stack of
    layers that were fused block by block, each gets its own rank back. No element changes.
    """
    b = _taken(update.b, rows)
    live = (b != 0).any(0)
    count = int(live.sum())
    if count in (0, update.rank):
        return replace(update, b=b)
    alpha = alpha_at(update.alpha, update.rank, count, rslora=update.rslora)
    return LowRank(update.a[live], b[:, live], alpha, update.rslora)


def of_rows(update: Update, rows: Rows) -> Update:
    """Return the update of some rows of the weight, with their norms or their bias."""
    low = sliced(factors(update), rows)
    match update:
        case DoRA(magnitude=magnitude, axis="out"):
            return DoRA(low, _taken(magnitude.reshape(-1), rows))
        case Biased(bias=bias):  # which the scale multiplies: it is the same
            return Biased(low, _taken(bias.reshape(-1), rows))
        case _:
            return low


def upon(updates: Sequence[Update], places: Sequence[Rows], out: int) -> Update:
    """Return the update of a weight of ``out`` rows that holds others, norms of all rows included.

    With magnitudes per output, the others have to fill the weight, each with its own.
    """
    low = stacked([factors(update) for update in updates], places, out)
    norms = [update.magnitude.reshape(-1) for update in updates if isinstance(update, DoRA)]
    if not norms:
        return low
    if len({(type(norm), norm.dtype) for norm in norms}) > 1:
        norms = [_wide(norm) for norm in norms]
    whole = _library(norms[0]).zeros((out,), dtype=norms[0].dtype)
    for norm, rows in zip(norms, places, strict=True):
        _put(norm, whole, rows)
    return DoRA(low, whole)


def stacked(updates: Sequence[LowRank], places: Sequence[Rows], out: int) -> LowRank:
    """Return the update of a weight of ``out`` rows that holds others, each in its rows.

    B is block by block, and its rank the sum of theirs; updates with one and the same A share its
    columns. No element changes where the scales are equal; where they differ, those of B are
    multiplied in float64, to the scale of the first that has one.
    """
    like = next((update for update in updates if update.scale), updates[0])
    pairs = [(u.b, u.a) for u in updates]
    if any(u.scale != like.scale for u in updates) or not _alike(pairs):
        ratios = [1.0 if u.scale == like.scale else u.scale / like.scale for u in updates]
        wide = zip(updates, ratios, strict=True)
        pairs = [(_wide(u.b) * ratio, _wide(u.a)) for u, ratio in wide]
    found: list[tuple[int, Array]] = []  # where its columns begin, and A
    columns, total = [], 0
    for _, a in pairs:
        begin = next((at for at, other in found if _equal(a, other)), None)
        if begin is None:
            begin, total = total, total + a.shape[0]
            found.append((begin, a))
        columns.append(begin)
    first = pairs[0][0]
    b = _library(first).zeros((out, total), dtype=first.dtype)
    for (block, _), rows, begin in zip(pairs, places, columns, strict=True):
        _put(block, b[:, begin : begin + block.shape[1]], rows)
    kept = [a for _, a in found]
    a = kept[0] if len(kept) == 1 else _library(kept[0]).concatenate(kept)
    alpha = alpha_at(like.alpha, like.rank, total, rslora=like.rslora)
    return LowRank(a, b, alpha, like.rslora)


def member(update: LowRank, number: int, rows: Rows, *, turned: bool) -> LowRank:
    """Return some rows of one update of a stack, of its transpose where it is turned."""
    b, a = update.b[number], update.a[number]
    if turned:
        b, a = a.T, b.T
    return sliced(replace(update, a=a, b=b), rows)


def piled(updates: Mapping[int, LowRank], count: int) -> LowRank:
    """Return updates of one shape as a stack of ``count``: those that are missing are zero.

    Ranks are filled up with zeros to the largest. No element changes where the scales are equal;
    where they differ, those of B are multiplied in float64, to the scale of the first that has one.
    """
    like = next((u for u in updates.values() if u.scale), next(iter(updates.values())))
    rank = max(update.rank for update in updates.values())
    pairs = {number: (u.b, u.a) for number, u in updates.items()}
    if any(u.scale != like.scale for u in updates.values()) or not _alike([*pairs.values()]):
        pairs = {
            number: (
                _wide(u.b) * (1.0 if u.scale == like.scale else u.scale / like.scale),
                _wide(u.a),
            )
            for number, u in updates.items()
        }
    first_b, first_a = next(iter(pairs.values()))
    library = _library(first_b)
    b = library.zeros((count, first_b.shape[0], rank), dtype=first_b.dtype)
    a = library.zeros((count, rank, first_a.shape[1]), dtype=first_a.dtype)
    for number, (left, right) in pairs.items():
        b[number, :, : left.shape[1]] = left
        a[number, : right.shape[0]] = right
    alpha = alpha_at(like.alpha, like.rank, rank, rslora=like.rslora)
    return LowRank(a, b, alpha, like.rslora)


def _taken(array: Array, rows: Rows) -> Array:
    pieces = [array[run.start : run.stop : run.step] for run in rows]
    return pieces[0] if len(pieces) == 1 else _library(pieces[0]).concatenate(pieces)


def _put(array: Array, whole: Array, rows: Rows) -> None:
    """Write rows of one array into those of another."""
    start = 0
    for run in rows:
        whole[run.start : run.stop : run.step] = array[start : start + len(run)]
        start += len(run)


def _alike(pairs: Sequence[tuple[Array, Array]]) -> bool:
    return len({(type(array), array.dtype) for pair in pairs for array in pair}) == 1


def _equal(x: Array, y: Array) -> bool:
    return x.shape == y.shape and bool((x == y).all())


def _wide(array: Array) -> Float[np.ndarray, "m n"]:
    """Return an array of either library as numpy's, in float64."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    double: np.ndarray = array.double().cpu().numpy()
    return double


def _library(array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return np
    import torch  # the array is torch's own

    return torch
