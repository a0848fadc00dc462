"""Weighted sums of low-rank updates: their factors side by side, and how the summands lie."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Factors, Small, factors_of, host
from lora_tools.scaling import alpha_at, alpha_for
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""A share of the summands' size below which their sum is what rounding left of nothing."""


class Contributions(NamedTuple):
    """What each summand ``w * update`` adds to a sum. Norms are Frobenius norms."""

    inner: Float[Small, "n n"]
    """The inner products of the summands; the squares of their norms on the diagonal."""
    columns: Float[Small, "n n ends"]
    """The smallest and the largest principal angle of their column spaces, in radians."""
    rows: Float[Small, "n n ends"]
    """The same of their row spaces; NaN where a summand is zero."""

    @property
    def norms(self) -> tuple[float, ...]:
        """The norm of each summand."""
        return tuple(np.sqrt(np.diagonal(self.inner).clip(min=0.0)).tolist())


def concatenated(updates: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return ``sum(w * update)``, exactly: ``[c1 B1, c2 B2, …] @ [A1; A2; …]`` with c = w · scale.

    Updates of the same factors are one, with the sum of their coefficients, and what adds up to
    nothing is left out; zero has rank 1. No bit changes where all coefficients are equal but for
    their signs. Where they differ, the columns of B are multiplied in float64, to the coefficient
    that most of them have: it becomes the scale of the result. Costs a copy of the factors.

    >>> x = LowRank(a=np.eye(1, 3), b=np.ones((2, 1)), alpha=4)
    >>> two = concatenated([x, replace(x, alpha=1)], [1.0, 0.5])
    >>> two.rank, two.scale
    (1, 4.5)
    """
    terms = _distinct(updates, weights)
    if not terms:
        return _zero(updates[0])
    if len(terms) == 1 and terms[0].weight is not None:
        return weighted(terms[0].update, terms[0].weight)
    counts = Counter(abs(term.coefficient) for term in terms)
    common = counts.most_common(1)[0][0]
    ratios = [term.coefficient / common for term in terms]
    pairs = [(term.update.b, term.update.a) for term in terms]
    kinds = {(type(array), array.dtype) for pair in pairs for array in pair}
    if len(kinds) > 1 or any(abs(ratio) != 1.0 for ratio in ratios):
        pairs = [(host(b) * ratio, host(a)) for (b, a), ratio in zip(pairs, ratios, strict=True)]
    else:
        pairs = [(-b if r < 0 else b, a) for (b, a), r in zip(pairs, ratios, strict=True)]
    b = _joined([b for b, _ in pairs], -1)
    a = _joined([a for _, a in pairs], -2)
    like, groups = terms[0].update, updates[0].groups
    r = a.shape[-2] * groups
    if common == like.scale:
        alpha = alpha_at(like.alpha, like.rank * groups, r, rslora=like.rslora)
        return LowRank(a, b, alpha, like.rslora, groups)
    return LowRank(a, b, alpha_for(common, r, rslora=False), groups=groups)


def weighted(update: LowRank, weight: float) -> LowRank:
    """Return ``weight * update`` without rounding: the size goes to alpha, the sign to B.

    >>> weighted(LowRank(a=np.eye(1, 3), b=np.ones((2, 1)), alpha=None), -2.0).alpha
    2.0
    """
    if weight == 1.0:
        return update
    r = update.rank * update.groups
    alpha = update.alpha
    if alpha is None:
        alpha = alpha_for(1.0, r, rslora=update.rslora)
    return replace(update, b=-update.b if weight < 0 else update.b, alpha=alpha * abs(weight))


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def contributions(updates: Sequence[LowRank], weights: Sequence[float]) -> Contributions:
    """Measure the summands of a sum from the Gram matrices of their factors.

    ``<X, Y> = tr((YbtXb)(Xa Yat))``; cosines of angles are the singular values of the product of
    orthonormal bases (Björck & Golub 1973), good to 1e-8, so that angles below 1e-4 are noise.
    Costs O((out + inp) * r**2), r the sum of the ranks. Raises `NonFiniteError` for NaN and Inf.
    """
    sides = [factors_of(update) for update in updates]
    scales = [side.scale * weight for side, weight in zip(sides, weights, strict=True)]
    count = len(sides)
    inner = np.zeros((count, count))
    columns, rows = (np.full((count, count, 2), np.nan) for _ in range(2))
    bases = [(_basis(side.b.dot(side.b)), _basis(side.a.dot(side.a))) for side in sides]
    for i, j in zip(*np.tril_indices(count), strict=True):
        b, a = sides[i].b.dot(sides[j].b), sides[i].a.dot(sides[j].a)
        inner[i, j] = inner[j, i] = scales[i] * scales[j] * float((b * a).sum())
        if i != j:
            columns[i, j] = columns[j, i] = _ends(bases[i][0], b, bases[j][0])
            rows[i, j] = rows[j, i] = _ends(bases[i][1], a, bases[j][1])
    if not np.isfinite(inner).all():
        raise NonFiniteError("its numbers, or their products, exceed float64")
    return Contributions(inner, columns, rows)


def is_rounding(s: Float[Small, "*stack rank"], factors: Factors) -> bool:
    """Whether singular values are what rounding leaves of factors that cancel each other.

    Each column of B meets its own row of A: of products that add up to less than a few roundings
    of their sizes, no digit is right.
    """
    b, a, scale = factors
    sizes = float((b.lengths() * a.lengths()).sum())
    most = sizes * abs(scale) * math.sqrt(b.array.shape[-2] * a.array.shape[-2])
    return float(np.linalg.norm(s)) <= ROUNDING * most


class _Term(NamedTuple):
    """Summands of the same factors: the first of them, and the weight and scale of each."""

    update: LowRank
    weights: tuple[float, ...]
    scales: tuple[float, ...]

    @property
    def coefficient(self) -> float:
        """What multiplies the product of the factors."""
        return math.fsum(w * s for w, s in zip(self.weights, self.scales, strict=True))

    @property
    def weight(self) -> float | None:
        """What multiplies the update; None where the scales differ."""
        return math.fsum(self.weights) if len({*self.scales}) == 1 else None


def _distinct(updates: Sequence[LowRank], weights: Sequence[float]) -> list[_Term]:
    terms: list[_Term] = []
    for update, weight in zip(updates, weights, strict=True):
        at = next((n for n, old in enumerate(terms) if _equal(old.update, update)), None)
        if at is None:
            terms.append(_Term(update, (weight,), (update.scale,)))
        else:
            old = terms[at]
            terms[at] = _Term(old.update, (*old.weights, weight), (*old.scales, update.scale))
    return [term for term in terms if term.coefficient]


def _equal(x: LowRank, y: LowRank) -> bool:
    """Whether two updates have the same factors, in whatever dtypes."""
    if x.b.shape != y.b.shape or x.a.shape != y.a.shape:
        return False
    alike = type(x.a) is type(y.a) and x.a.dtype == y.a.dtype and x.b.dtype == y.b.dtype
    first = x.a[..., 0, :], y.a[..., 0, :]  # which decides nearly always
    if not _same(*first, alike):
        return False
    return _same(x.a, y.a, alike) and _same(x.b, y.b, alike)


def _same(x: Array, y: Array, alike: bool) -> bool:
    return bool((x == y).all()) if alike else bool((host(x) == host(y)).all())


def _zero(like: LowRank) -> LowRank:
    """Return an update of rank 1 that adds nothing."""
    alpha = float(like.groups)
    return LowRank(like.a[..., :1, :] * 0, like.b[..., :1] * 0, alpha, groups=like.groups)


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis=axis)
    import torch  # the arrays are torch's own

    return torch.cat(list(arrays), dim=axis)


def _basis(gram: Float[Small, "*stack r r"]) -> Float[Small, "*stack r r"]:
    """Return what makes the columns of a factor orthonormal; zeros for directions that it lacks."""
    if not np.isfinite(gram).all():
        raise NonFiniteError("a factor holds NaN or Inf")
    values, vectors = np.linalg.eigh(gram)
    usable = values > 1e-14 * values[..., -1:]
    weight = np.where(usable, np.where(usable, values, 1.0) ** -0.5, 0.0)
    basis: Small = vectors * weight[..., None, :]
    return basis


def _ends(x: Small, cross: Small, y: Small) -> tuple[float, float]:
    """Return the smallest and the largest principal angle; of a stack, over all its members."""
    cosines = np.linalg.svd(x.swapaxes(-1, -2) @ cross @ y, compute_uv=False)
    ranks = np.minimum(*((basis != 0).any(-2).sum(-1) for basis in (x, y)))
    found: list[float] = []
    for index in np.ndindex(ranks.shape):
        kept = cosines[index][: int(ranks[index])] if ranks.shape else cosines[: int(ranks)]
        found += np.arccos(kept.clip(-1.0, 1.0)).tolist()
    return (min(found), max(found)) if found else (float("nan"), float("nan"))
