"""Say the same update under another scale or in another type, without rounding where possible."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import as_factor, host
from lora_tools.linalg.metrics import length, squared_distance, squared_norm
from lora_tools.linalg.range import check_measurable
from lora_tools.linalg.sums import concatenated
from lora_tools.update import Biased, DoRA, LowRank, Update, factors

ROUNDING = 2.0**-53


class Rescaled(NamedTuple):
    """The update in its new types, and its squared distance from the original."""

    update: LowRank
    squared_error: float


@exact()
def rescale(
    update: LowRank, *, dtypes: tuple[str, str], alpha: float | None, rslora: bool
) -> Rescaled:
    """Return ``update`` under another alpha, its factors in ``dtypes`` (of B, of A).

    The change of scale goes into B, or into A where only that is exact: a power of two costs no
    digits unless it leaves the type's range. The error is 0 only if every element is exact.
    Raises `NonFiniteError` if the type cannot hold the numbers, or float64 their squares.
    """
    like = LowRank(update.a, update.b, alpha, rslora, update.groups)
    ratio = _ratio(update, like)
    old_b, old_a = as_factor(update.b), as_factor(update.a)
    b, b_exact = old_b.scaled(ratio, dtypes[0])
    a, a_exact = old_a.scaled(1.0, dtypes[1])
    if not b_exact and ratio != 1.0:
        plain, plain_exact = old_b.scaled(1.0, dtypes[0])
        other, other_exact = old_a.scaled(ratio, dtypes[1])
        if plain_exact and other_exact:
            b, b_exact, a, a_exact = plain, True, other, True
    result = LowRank(a.array, b.array, alpha, rslora, update.groups)
    if b_exact and a_exact:
        return Rescaled(result, 0.0)
    if not (b.is_finite() and a.is_finite()):
        raise NonFiniteError(f"values exceed the range of {' or '.join(sorted(set(dtypes)))}")
    # Where even triangles see nothing, what float64 itself rounds away is still an error.
    least = (ROUNDING**2) * squared_norm(update)
    return Rescaled(result, max(squared_distance(update, result), least))


@exact()
def refactored(update: Update, new: LowRank) -> Update:
    """Return ``update`` with its low-rank part replaced.

    The bias of a `Biased` update is multiplied by its scale in use, so it is rescaled to mean
    what it meant; a DoRA magnitude belongs to the merged weight and stays as it is.
    """
    match update:
        case LowRank():
            return new
        case DoRA(magnitude=magnitude, axis=axis):
            return DoRA(new, magnitude, axis)
        case Biased(weight=old, bias=bias):
            ratio = _ratio(old, new)
            kind = str(bias.dtype).removeprefix("torch.")
            return Biased(new, as_factor(bias[:, None]).scaled(ratio, kind)[0].array[:, 0])


@exact()
def bias_error(before: Update, after: Update) -> float:
    """Return the squared distance that two updates' biases add to that of their weights."""
    if not (isinstance(before, Biased) and isinstance(after, Biased)):
        return 0.0
    x, y = (host(update.bias) for update in (before, after))
    p, q = before.weight.scale, after.weight.scale
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        error = length(p * (x - y) if p == q else p * x - q * y)
    check_measurable(error)
    return error**2


@exact()
def summed(updates: Sequence[Update], weights: Sequence[float], kind: str) -> Update:
    """Return ``sum(w * update)``, exactly but for biases, which are rounded to ``kind``.

    A bias of B is multiplied by the scale, so it is a difference that adds up as the factors do.
    DoRA magnitudes do not: the update of one adapter may have them, at a weight of 1.
    """
    if len(updates) == 1 and weights[0] == 1.0:
        return updates[0]
    assert not any(isinstance(update, DoRA) for update in updates), "magnitudes do not add up"
    low = concatenated([factors(update) for update in updates], weights)
    biases = [
        w * update.weight.scale * host(update.bias)
        for update, w in zip(updates, weights, strict=True)
        if isinstance(update, Biased)
    ]
    if not biases:
        return low
    total = sum(biases[1:], biases[0]) / low.scale
    return Biased(low, as_factor(total[:, None]).scaled(1.0, kind)[0].array[:, 0])


def _ratio(old: LowRank, new: LowRank) -> float:
    """Return what the factors are multiplied by, so that the update is the same."""
    if old.scale == new.scale:
        return 1.0
    ratio = old.scale / new.scale if new.scale else math.inf
    if not math.isfinite(ratio) or (old.scale and not ratio):
        raise NonFiniteError(f"a scale of {old.scale:g} cannot become one of {new.scale:g}")
    return ratio
