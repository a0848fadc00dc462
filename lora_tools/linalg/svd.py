"""Singular values and truncations of low-rank updates, without ever forming the update."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lora_tools.errors import NonFiniteError
from lora_tools.update import LowRank

CANCELLATION = 0.03
"""Below this ratio of ||BA|| to ||B|| ||A|| the Gram matrices have lost too many digits."""


class SVD(NamedTuple):
    """The thin singular value decomposition ``u @ diag(s) @ vt``."""

    u: Float[Tensor, "*stack out k"]
    s: Float[Tensor, "*stack k"]
    vt: Float[Tensor, "*stack k inp"]


class Core(NamedTuple):
    """The r x r heart of an update, from which every truncation follows.

    ``b @ left[..., :k]`` and ``right[..., :k, :] @ a`` are the balanced factors of the best
    approximation of rank k: U sqrt(S) and sqrt(S) Vt, the scale included.
    """

    s: Float[Tensor, "*stack rank"]
    left: Float[Tensor, "*stack rank rank"]
    right: Float[Tensor, "*stack rank rank"]


def core(update: LowRank) -> Core:
    """Decompose ``scale * b @ a`` through its Gram matrices.

    With BtB = Vb Sb^2 Vbt and A At = Va Sa^2 Vat, the singular values of BA are those of the
    r x r matrix (Sb Vbt)(Va Sa). The columns of B are balanced against the rows of A first, and
    factors that nearly cancel each other go through QR instead, since a Gram matrix squares
    their condition. All in float64, on the host for the r x r part.

    Costs O((out + inp) * rank**2). Raises `NonFiniteError` if a factor holds NaN or Inf.
    """
    b, a = wide(update.b), wide(update.a)
    gram_b, gram_a = (b.mT @ b).cpu(), (a @ a.mT).cpu()
    for gram, factor in ((gram_b, "B"), (gram_a, "A")):
        if not gram.diagonal(dim1=-2, dim2=-1).isfinite().all():
            raise NonFiniteError(f"{factor} holds NaN or Inf")
    balance = _balance(gram_b.diagonal(dim1=-2, dim2=-1), gram_a.diagonal(dim1=-2, dim2=-1))
    root_b, root_a = _root(_scaled(gram_b, balance.b)), _root(_scaled(gram_a, balance.a))
    result = _between(root_b, root_a, balance, update.scale)
    norms = torch.linalg.matrix_norm(root_b) * torch.linalg.matrix_norm(root_a)
    if (result.s.norm(dim=-1) < CANCELLATION * abs(update.scale) * norms).any():
        root_b = _triangle(b.cpu() * balance.b.unsqueeze(-2))
        root_a = _triangle(a.mT.cpu() * balance.a.unsqueeze(-2))
        result = _between(root_b, root_a, balance, update.scale)
    return result


def svd(update: LowRank) -> SVD:
    """Factor ``scale * b @ a`` as ``u @ diag(s) @ vt``.

    Costs O((out + inp) * rank**2). Directions of singular value 0 come back as zeros.

    >>> svd(LowRank(a=torch.eye(2, 5), b=3 * torch.eye(4, 2), alpha=2)).s
    tensor([3., 3.], dtype=torch.float64)
    """
    heart = core(update)
    weight = torch.where(heart.s > 0, heart.s, 1).rsqrt()
    device = update.b.device
    left = (heart.left * weight.unsqueeze(-2)).to(device)
    right = (heart.right * weight.unsqueeze(-1)).to(device)
    return SVD(wide(update.b) @ left, heart.s, right @ wide(update.a))


def wide(tensor: Tensor) -> Float[Tensor, "..."]:
    """Return the tensor in float64; from a device without float64, on the host.

    Goes by float32, from which and to which every narrower type has a fast conversion.
    """
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.double() if tensor.dtype == torch.float64 else tensor.float().double()


class _Balance(NamedTuple):
    """Weights of B's columns and A's rows: inverse to each other, or both 0 for a dead pair."""

    b: Float[Tensor, "*stack rank"]
    a: Float[Tensor, "*stack rank"]


def _balance(b: Float[Tensor, "*stack rank"], a: Float[Tensor, "*stack rank"]) -> _Balance:
    """Make each column of B as long as its row of A, given their squared lengths."""
    live = (b > 0) & (a > 0)
    weight = torch.where(live, a / b, 1).sqrt().sqrt()
    return _Balance(torch.where(live, weight, 0), torch.where(live, 1 / weight, 0))


def _scaled(
    gram: Float[Tensor, "*stack rank rank"], weight: Float[Tensor, "*stack rank"]
) -> Float[Tensor, "*stack rank rank"]:
    return weight.unsqueeze(-1) * gram * weight.unsqueeze(-2)


def _root(gram: Float[Tensor, "*stack rank rank"]) -> Float[Tensor, "*stack rank rank"]:
    """Return R with RtR = gram: by Cholesky, or by eigenvalues where the rank is deficient."""
    root, failures = torch.linalg.cholesky_ex(gram, upper=True)
    if failures.any():
        values, vectors = torch.linalg.eigh(gram)
        root = values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT
    return root


def _triangle(factor: Float[Tensor, "*stack m rank"]) -> Float[Tensor, "*stack rank rank"]:
    """Return R of the factor's QR decomposition, with rows of zeros where the factor is wide."""
    triangle = torch.linalg.qr(factor, mode="r").R
    missing = factor.shape[-1] - triangle.shape[-2]
    padded: Tensor = pad(triangle, (0, 0, 0, missing)) if missing else triangle
    return padded


def _between(
    root_b: Float[Tensor, "*stack rank rank"],
    root_a: Float[Tensor, "*stack rank rank"],
    balance: _Balance,
    scale: float,
) -> Core:
    """Decompose QB (root_b root_at) QAt, where QB root_b and QA root_a are the balanced B and At.

    With root_b root_at = P S Rt, U S = B root_at R, and S Vt = Pt root_b A: the vectors come from
    the factors by multiplication, and nothing is divided by a small number but the square roots
    of the singular values themselves.
    """
    p, s, rt = torch.linalg.svd(root_b @ root_a.mT)
    s = s * abs(scale)
    usable = s > 1e-15 * s[..., :1]
    weight = torch.where(usable, torch.where(usable, s, 1).rsqrt(), 0) * abs(scale)
    left = balance.b.unsqueeze(-1) * (root_a.mT @ rt.mT) * weight.unsqueeze(-2)
    right = weight.unsqueeze(-1) * (p.mT @ root_b) * balance.a.unsqueeze(-2)
    return Core(s, left, -right if scale < 0 else right)
