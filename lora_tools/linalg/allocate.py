"""Share one budget among modules, optimally: a multiple-choice knapsack."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_tools.shapes import Float, Int

MOST_STATES = 200_000
"""Partial solutions kept in the exact search; beyond it the greedy solution stands."""


class RankOptions(NamedTuple):
    """What one module may choose: ``value`` to be minimised, falling as ``weight`` rises."""

    value: Float[np.ndarray, " choices"]
    weight: Float[np.ndarray, " choices"]


class _Step(NamedTuple):
    """Moving one module from a choice to the next: what it gains per unit of weight."""

    rate: float
    module: int
    choice: int


def minimise(options: Sequence[RankOptions], budget: float) -> list[int]:
    """Pick one choice per module: the least total value whose total weight is within ``budget``.

    Where values are convex in weights, as truncation errors of decreasing spectra are, taking
    steps by falling gain per weight is optimal but for the last one, which may not fit: rank
    allocation by one global threshold on sigma**2 per parameter. The rest is closed exactly.
    With the threshold as a Lagrange multiplier, every choice has a penalty, a solution costs at
    least the sum of its penalties more than the relaxed optimum, and only choices with penalties
    below the greedy solution's gap can be in a better one. Those few are searched in full, by
    dynamic programming over Pareto-optimal partial sums.

    Costs O(n log n) for the threshold; the search is bounded by `MOST_STATES` per module. The
    first choices must fit together.
    """
    # Of choices that weigh the same, the last is the best: steps between them have no rate.
    worth = [np.flatnonzero(np.append(np.diff(weight) > 0, True)) for _, weight in options]
    pairs = zip(options, worth, strict=True)
    steps = [RankOptions(value[few], weight[few]) for (value, weight), few in pairs]
    picks = _minimise(steps, budget)
    return [int(few[pick]) for few, pick in zip(worth, picks, strict=True)]


def _minimise(options: Sequence[RankOptions], budget: float) -> list[int]:
    """Pick as `minimise` does, where every choice weighs more than the one before it."""
    picks, rate = _greedy(options, budget)
    if rate is None:
        return picks
    with np.errstate(over="ignore", invalid="ignore"):
        penalties = [value + rate * weight for value, weight in options]
        floor = [penalty.min() for penalty in penalties]
        relaxed = sum(floor) - rate * budget
        best = sum(option.value[pick] for option, pick in zip(options, picks, strict=True))
        # Penalties are differences of sums: below this they are rounding.
        noise = 1e-12 * (abs(best) + rate * abs(budget))
        gap = max(best - relaxed, 0.0) + noise
    if not np.isfinite(gap):  # modules too far apart in size for sums over all of them
        return picks
    candidates = [
        np.flatnonzero(penalty - low <= gap) for penalty, low in zip(penalties, floor, strict=True)
    ]
    better = _search(options, candidates, penalties, budget, gap, best)
    return picks if better is None else better


def _greedy(options: Sequence[RankOptions], budget: float) -> tuple[list[int], float | None]:
    """Take steps by falling rate while they fit; return the picks and the first rate left out."""
    steps = sorted(
        (
            _Step(_rate(option, choice), module, choice)
            for module, option in enumerate(options)
            for choice in range(len(option.value) - 1)
        ),
        key=lambda step: (-step.rate, step.module, step.choice),
    )
    picks = [0] * len(options)
    room = budget - sum(float(option.weight[0]) for option in options)
    threshold = None
    for rate, module, choice in steps:
        if rate <= 0:
            break
        weight = options[module].weight
        need = float(weight[choice + 1] - weight[choice])
        if picks[module] == choice and need <= room:
            picks[module] += 1
            room -= need
        elif threshold is None:
            threshold = rate
    return picks, threshold


def _rate(option: RankOptions, choice: int) -> float:
    gain = float(option.value[choice] - option.value[choice + 1])
    return gain / float(option.weight[choice + 1] - option.weight[choice])


def _search(
    options: Sequence[RankOptions],
    candidates: Sequence[Int[np.ndarray, " _"]],
    penalties: Sequence[Float[np.ndarray, " _"]],
    budget: float,
    gap: float,
    best: float,
) -> list[int] | None:
    """Return the best solution among the candidates if it beats ``best``, else None."""
    open_modules = [m for m, few in enumerate(candidates) if len(few) > 1]
    fixed = [m for m, few in enumerate(candidates) if len(few) == 1]
    picks = [int(few[0]) for few in candidates]
    weight = np.array([sum(options[m].weight[picks[m]] for m in fixed)])
    value = np.array([sum(options[m].value[picks[m]] for m in fixed)])
    penalty = np.zeros(1)
    least = sum(options[m].weight[candidates[m]].min() for m in open_modules)
    trail: list[tuple[Int[np.ndarray, " states"], Int[np.ndarray, " states"]]] = []
    for m in open_modules:
        few, option = candidates[m], options[m]
        least -= option.weight[few].min()
        extra = penalties[m][few] - penalties[m].min()
        grown = [
            np.add.outer(x, y).ravel()
            for x, y in ((weight, option.weight[few]), (value, option.value[few]), (penalty, extra))
        ]
        keep = np.flatnonzero((grown[2] <= gap) & (grown[0] + least <= budget))
        # Of equal or smaller weight only the smaller value can lead to the optimum.
        keep = keep[np.lexsort((grown[1][keep], grown[0][keep]))]
        lowest = np.minimum.accumulate(grown[1][keep])
        keep = keep[np.append(True, lowest[1:] < lowest[:-1])[: len(keep)]]
        if not 0 < len(keep) <= MOST_STATES:
            return None
        weight, value, penalty = (array[keep] for array in grown)
        trail.append((keep // len(few), keep % len(few)))
    if not open_modules or value[-1] >= best:
        return None
    state = len(value) - 1
    for m, (parent, choice) in zip(reversed(open_modules), reversed(trail), strict=True):
        picks[m] = int(candidates[m][choice[state]])
        state = int(parent[state])
    return picks
