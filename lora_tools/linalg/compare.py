"""Compare two low-rank updates from their factors: distance, angle, and the spaces they span."""

import math
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.angles import outside, principal_angles
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Small, factors_of
from lora_tools.linalg.range import check_measurable
from lora_tools.linalg.triangle import NEAR, gram_triangle, triangle
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

ROUNDING = float(np.finfo(np.float64).eps)


class Spaces(NamedTuple):
    """How the column spaces, or the row spaces, of two updates X and Y lie to each other."""

    angles: tuple[float, ...]
    """Principal angles in radians, ascending; of a stack, those of all its members."""
    new: float
    """``||(I - P) Y|| / ||Y||`` with P the projection on X's space: what X has no direction for."""
    lost: float
    """The same of X outside Y's space."""


class Comparison(NamedTuple):
    """Two updates X and Y, the scales included. Norms are Frobenius norms."""

    norms: tuple[float, float]
    inner: float
    """The Frobenius inner product <X, Y>."""
    difference: float
    """``||X - Y||``."""
    residual: float
    """``||Y - c X||`` with the best factor c = <X, Y> / <X, X>."""
    tails: tuple[float, float]
    """The least ``||X - Z||`` of any Z of Y's rank, and the least ``||Y - Z||`` of X's rank."""
    ranks: tuple[int, int]
    """Numerical ranks; of a stack, the largest."""
    columns: Spaces
    rows: Spaces
    noise: float
    """Rounding: what ``difference`` may show of updates that are the same."""
    equal: bool
    """Whether factors and scale are the same numbers in the same type."""


class _Span(NamedTuple):
    """The singular value decomposition of one update in the common orthonormal coordinates."""

    u: Float[Small, "*stack m rank"]
    s: Float[Small, "*stack rank"]
    v: Float[Small, "*stack n rank"]


class _Roots(NamedTuple):
    """Triangles with the Gram matrices of [Bx, By] and [Axt, Ayt]; of one update's, if same."""

    b: Float[Small, "*stack m columns"]
    a: Float[Small, "*stack n columns"]


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def compare(x: LowRank, y: LowRank) -> Comparison:
    """Compare two updates of one shape without forming either.

    With [Bx, By] = Qb Rb and [Axt, Ayt] = Qa Ra, the difference is Qb (Rb diag(sx, -sy) Rat) Qat:
    a matrix with as many rows as the ranks together has its norm, and its rounding is relative to
    the factors, not to the square root of a difference of squares. The triangles come from Gram
    matrices, and where the updates or their spaces are too near for that, from what is left of Y's
    factors after a projection on X's.
    Updates of equal numbers have a difference and angles of exactly 0.

    Costs O((out + inp) * (rank_x + rank_y)**2). Raises `NonFiniteError` for NaN, Inf, and norms
    whose squares float64 cannot hold.
    """
    same = _equal(x, y)
    sides = [factors_of(x)] if same else [factors_of(x), factors_of(y)]
    scales = sides[0].scale, sides[-1].scale
    pairs = [[each.b for each in sides], [each.a for each in sides]]
    quick = [gram_triangle(factors) for factors in pairs]
    if quick[0] is not None and quick[1] is not None:
        found = _measure(x.rank, scales, _Roots(quick[0], quick[1]), same=same)
        if same or not _near(found):
            return found
    b, a = (triangle(factors) for factors in pairs)
    if not (np.isfinite(b).all() and np.isfinite(a).all()):
        raise NonFiniteError("a factor holds NaN or Inf")
    return _measure(x.rank, scales, _Roots(b, a), same=same)


def _equal(x: LowRank, y: LowRank) -> bool:
    """Whether two updates are made of the same numbers."""
    pairs = ((x.a, y.a), (x.b, y.b))
    return x.scale == y.scale and all(
        type(p) is type(q) and p.shape == q.shape and p.dtype == q.dtype and bool((p == q).all())
        for p, q in pairs
    )


def _near(found: Comparison) -> bool:
    """Whether digits that Gram matrices do not have would show."""
    angles = (*found.columns.angles, *found.rows.angles)
    # The noise is a few roundings of the factors' products, against which NEAR is meant.
    closest = found.noise / ROUNDING * NEAR / 8
    return found.difference < closest or min(angles, default=1.0) < NEAR


def _measure(rank: int, scales: tuple[float, float], roots: _Roots, *, same: bool) -> Comparison:
    """Compare the updates in the coordinates that the triangles belong to; ``rank`` is X's."""
    first, second = slice(0, rank), slice(0 if same else rank, None)
    b_x, a_x = roots.b[..., first] * scales[0], roots.a[..., first]
    b_y, a_y = roots.b[..., second] * scales[1], roots.a[..., second]
    core_x, core_y = b_x @ a_x.swapaxes(-1, -2), b_y @ a_y.swapaxes(-1, -2)
    rounding = (_rounding(b_x, a_x), _rounding(b_y, a_y))
    norms = float(np.linalg.norm(core_x)), float(np.linalg.norm(core_y))
    for norm, b, a in zip(norms, (b_x, b_y), (a_x, a_y), strict=True):
        check_measurable(norm)
        if not norm and b.any() and a.any():  # a product of nothing, or below float64's range
            check_measurable(float(np.abs(b).max()), float(np.abs(a).max()))
    inner = float((core_x * core_y).sum())
    factor = inner / norms[0] / norms[0] if norms[0] else 0.0
    spans = _span(b_x, a_x), _span(b_y, a_y)
    ranks_x, ranks_y = (
        (span.s > bound[..., None]).sum(-1) for span, bound in zip(spans, rounding, strict=True)
    )
    columns = _spaces(spans[0].u, spans[0].s, ranks_x, spans[1].u, spans[1].s, ranks_y, same)
    rows = _spaces(spans[0].v, spans[0].s, ranks_x, spans[1].v, spans[1].s, ranks_y, same)
    return Comparison(
        norms=norms,
        inner=inner,
        difference=0.0 if same else float(np.linalg.norm(core_x - core_y)),
        residual=0.0 if same else float(np.linalg.norm(core_y - factor * core_x)),
        tails=(
            float(np.linalg.norm(spans[0].s[..., a_y.shape[-1] :])),
            float(np.linalg.norm(spans[1].s[..., rank:])),
        ),
        ranks=(int(ranks_x.max()), int(ranks_y.max())),
        columns=columns,
        rows=rows,
        noise=0.0 if same else float(np.linalg.norm(rounding[0]) + np.linalg.norm(rounding[1])),
        equal=same,
    )


def _rounding(
    b: Float[Small, "*stack m rank"], a: Float[Small, "*stack n rank"]
) -> Float[np.ndarray, "*stack"]:
    """Return what rounding may add to each product: each column of B meets its own row of A."""
    lengths = np.linalg.norm(b, axis=-2) * np.linalg.norm(a, axis=-2)
    return np.asarray(8 * ROUNDING * lengths.sum(-1))


def _span(b: Float[Small, "*stack m rank"], a: Float[Small, "*stack n rank"]) -> _Span:
    """Return the thin decomposition of ``b @ a.T``."""
    (q_b, r_b), (q_a, r_a) = np.linalg.qr(b), np.linalg.qr(a)
    u, s, vt = np.linalg.svd(r_b @ r_a.swapaxes(-1, -2), full_matrices=False)
    return _Span(q_b @ u, s, q_a @ vt.swapaxes(-1, -2))


def _spaces(
    u: Float[Small, "*stack m k"],
    s: Float[Small, "*stack k"],
    u_ranks: Array,
    v: Float[Small, "*stack m l"],
    t: Float[Small, "*stack l"],
    v_ranks: Array,
    same: bool,
) -> Spaces:
    """Compare the spaces that the first columns of each member span, weighted by their values."""
    if same:
        return Spaces((0.0,) * int(u_ranks.sum()), 0.0, 0.0)
    angles: list[float] = []
    new = lost = 0.0
    for index in np.ndindex(u.shape[:-2]):
        p, q = u[index][:, : u_ranks[index]], v[index][:, : v_ranks[index]]
        if p.shape[1] and q.shape[1]:
            angles += principal_angles(p, q).tolist()
        new += float(np.square(outside(p, q) * t[index][: q.shape[1]]).sum())
        lost += float(np.square(outside(q, p) * s[index][: p.shape[1]]).sum())
    whole_s, whole_t = float(np.square(s).sum()), float(np.square(t).sum())
    return Spaces(
        tuple(sorted(angles)),
        math.sqrt(new / whole_t) if whole_t else 0.0,
        math.sqrt(lost / whole_s) if whole_s else 0.0,
    )
