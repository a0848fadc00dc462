"""Say the same update under another scale or in another type, without rounding where possible."""

from typing import NamedTuple

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.metrics import squared_distance
from lora_tools.linalg.tall import tall
from lora_tools.update import Biased, DoRA, LowRank, Update


class Rescaled(NamedTuple):
    """The update in its new types, and its squared distance from the original."""

    update: LowRank
    squared_error: float


def rescale(
    update: LowRank, *, dtypes: tuple[str, str], alpha: float | None, rslora: bool
) -> Rescaled:
    """Return ``update`` under another alpha, its factors in ``dtypes`` (of B, of A).

    The change of scale goes into B, or into A where only that is exact: a power of two costs no
    digits unless it leaves the type's range. The error is 0 only if every element is exact.
    Raises `NonFiniteError` if the type cannot hold the numbers.
    """
    like = LowRank(update.a, update.b, alpha, rslora, update.groups)
    ratio = 1.0 if like.scale == update.scale else update.scale / like.scale
    old_b, old_a = tall(update.b), tall(update.a)
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
    return Rescaled(result, squared_distance(update, result))


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
            ratio = 1.0 if old.scale == new.scale else old.scale / new.scale
            kind = str(bias.dtype).removeprefix("torch.")
            return Biased(new, tall(bias[:, None]).scaled(ratio, kind)[0].array[:, 0])


def bias_error(before: Update, after: Update) -> float:
    """Return the squared distance that two updates' biases add to that of their weights."""
    if not (isinstance(before, Biased) and isinstance(after, Biased)):
        return 0.0
    x, y = (tall(update.bias[:, None]) for update in (before, after))
    p, q = before.weight.scale, after.weight.scale
    squared = p * p * x.dot(x) - 2 * p * q * y.dot(x) + q * q * y.dot(y)
    return max(float(squared.item()), 0.0)
