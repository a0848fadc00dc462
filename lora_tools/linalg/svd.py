"""Singular values and truncations of low-rank updates, without ever forming the update."""

from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Factor, Factors, Small, factors_of
from lora_tools.linalg.range import check_measurable
from lora_tools.shapes import Float
from lora_tools.update import Array, LowRank

CANCELLATION = 0.03
"""Below this ratio of ||BA|| to ||B|| ||A|| the Gram matrices have lost too many digits."""


class SVD(NamedTuple):
    """The thin singular value decomposition ``u @ diag(s) @ vt``, in float64."""

    u: Float[Array, "*stack out k"]
    s: Float[Small, "*stack k"]
    vt: Float[Array, "*stack k inp"]


class Core(NamedTuple):
    """The r x r heart of an update, from which every truncation follows.

    ``b @ left[..., :k]`` and ``right[..., :k, :] @ a`` are the balanced factors of the best
    approximation of rank k: U sqrt(S) and sqrt(S) Vt, the scale included.
    """

    s: Float[Small, "*stack rank"]
    left: Float[Small, "*stack rank rank"]
    right: Float[Small, "*stack rank rank"]


@exact()
def core(update: LowRank, factors: Factors | None = None, *, careful: bool = False) -> Core:
    """Decompose ``scale * b @ a`` through its Gram matrices.

    With BtB = RbtRb and A At = RatRa, the singular values of BA are those of the r x r matrix
    Rb Rat. The columns of B are balanced against the rows of A first, and factors that nearly
    cancel each other go through QR instead, since a Gram matrix squares their condition. All in
    float64, on the host for the r x r part. ``factors`` are the update's factors, if held already.
    Values below 1e-8 of the largest are noise, unless ``careful`` takes the way of QR at once.

    Costs O((out + inp) * rank**2). Raises `NonFiniteError` if a factor holds NaN or Inf, or if the
    update is so large or so small that float64 cannot hold the square of its norm.
    """
    b, a, scale = factors or factors_of(update)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        gram_b, gram_a = b.dot(b), a.dot(a)
    for gram, factor in ((gram_b, "B"), (gram_a, "A")):
        if not np.isfinite(_diagonal(gram)).all():
            raise NonFiniteError(f"{factor} holds NaN or Inf")
    balance = _balance(_diagonal(gram_b), _diagonal(gram_a))
    if careful:
        return _between(_triangle(b, balance.b), _triangle(a, balance.a), balance, scale)
    root_b, root_a = _root(_scaled(gram_b, balance.b)), _root(_scaled(gram_a, balance.a))
    result = _between(root_b, root_a, balance, scale)
    norms = np.linalg.norm(root_b, axis=(-2, -1)) * np.linalg.norm(root_a, axis=(-2, -1))
    size = np.linalg.norm(result.s, axis=-1)
    if (size < CANCELLATION * abs(scale) * norms).any():
        roots = _triangle(b, balance.b), _triangle(a, balance.a)
        result = _between(*roots, balance, scale)
    return result


@exact()
def svd(update: LowRank) -> SVD:
    """Factor ``scale * b @ a`` as ``u @ diag(s) @ vt``.

    Costs O((out + inp) * rank**2). Directions of singular value 0 come back as zeros.

    >>> svd(LowRank(a=np.eye(2, 5), b=3 * np.eye(4, 2), alpha=2)).s
    array([3., 3.])
    """
    factors = factors_of(update)
    heart = core(update, factors)
    weight = _inverse_root(heart.s)
    u = factors.b.times(heart.left * weight[..., None, :], "float64")
    right = (heart.right * weight[..., :, None]).swapaxes(-1, -2)
    v = factors.a.times(right, "float64")
    return SVD(u.array, heart.s, v.array.swapaxes(-1, -2))


class _Balance(NamedTuple):
    """Weights of B's columns and A's rows: inverse to each other, or both 0 for a dead pair."""

    b: Float[Small, "*stack rank"]
    a: Float[Small, "*stack rank"]


def _balance(b: Float[Small, "*stack rank"], a: Float[Small, "*stack rank"]) -> _Balance:
    """Make each column of B as long as its row of A, given their squared lengths."""
    live = (b > 0) & (a > 0)
    weight = (np.where(live, a, 1) / np.where(live, b, 1)) ** 0.25
    return _Balance(np.where(live, weight, 0.0), np.where(live, 1 / weight, 0.0))


def _diagonal(gram: Float[Small, "*stack rank rank"]) -> Float[Small, "*stack rank"]:
    return np.diagonal(gram, axis1=-2, axis2=-1)


def _scaled(
    gram: Float[Small, "*stack rank rank"], weight: Float[Small, "*stack rank"]
) -> Float[Small, "*stack rank rank"]:
    product: Small = weight[..., :, None] * gram * weight[..., None, :]
    return product


def _root(gram: Float[Small, "*stack rank rank"]) -> Float[Small, "*stack rank rank"]:
    """Return R with RtR = gram: by Cholesky, or by eigenvalues where the rank is deficient."""
    try:
        root: Small = np.linalg.cholesky(gram).swapaxes(-1, -2)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram)
        root = np.sqrt(values.clip(min=0))[..., :, None] * vectors.swapaxes(-1, -2)
    return root


def _triangle(
    factor: Factor, weight: Float[Small, "*stack rank"]
) -> Float[Small, "*stack rank rank"]:
    """Return R of the weighted factor's QR decomposition, with rows of zeros where it is wide."""
    rank = weight.shape[-1]
    diagonal = weight[..., :, None] * np.eye(rank)
    weighted = factor.times(diagonal, "float64").array
    host = weighted if isinstance(weighted, np.ndarray) else weighted.cpu().numpy()
    triangle = np.asarray(np.linalg.qr(host, mode="r"))
    missing = rank - triangle.shape[-2]
    return np.pad(triangle, [(0, 0)] * (triangle.ndim - 2) + [(0, missing), (0, 0)])


def _between(
    root_b: Float[Small, "*stack rank rank"],
    root_a: Float[Small, "*stack rank rank"],
    balance: _Balance,
    scale: float,
) -> Core:
    """Decompose QB (root_b root_at) QAt, where QB root_b and QA root_a are the balanced B and At.

    With root_b root_at = P S Rt, U S = B root_at R, and S Vt = Pt root_b A: the vectors come from
    the factors by multiplication, and nothing is divided by a small number but the square roots
    of the singular values themselves.
    """
    p, s, rt = np.linalg.svd(root_b @ root_a.swapaxes(-1, -2))
    check_measurable(float(s.max(initial=0.0)), scale)
    s = s * abs(scale)
    weight = _inverse_root(s) * abs(scale)
    left = balance.b[..., :, None] * (root_a.swapaxes(-1, -2) @ rt.swapaxes(-1, -2))
    right = (p.swapaxes(-1, -2) @ root_b) * balance.a[..., None, :]
    sign = -1.0 if scale < 0 else 1.0
    return Core(s, left * weight[..., None, :], sign * weight[..., :, None] * right)


def _inverse_root(s: Float[Small, "*stack rank"]) -> Float[Small, "*stack rank"]:
    """Return 1 / sqrt(s), and 0 where s is rounding noise."""
    usable = s > 1e-15 * s[..., :1]
    return np.where(usable, np.where(usable, s, 1) ** -0.5, 0.0)
