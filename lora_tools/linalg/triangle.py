"""Triangles R with ``R.T @ R`` the Gram matrix of tall factors side by side."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_tools.linalg.exact import exact, tensor
from lora_tools.linalg.factors import Factor, Small, as_factor
from lora_tools.shapes import Float
from lora_tools.update import Array

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 1e-4
"""What is closer than this, or an angle that is smaller, is not left to Gram matrices."""


@exact()
def gram_triangle(factors: list[Factor]) -> Float[Small, "*stack m m"] | None:
    """Return the Cholesky factor of one or two factors' Gram matrix; None if it lacks digits."""
    own = [factor.dot(factor) for factor in factors]
    if len(own) == 1:
        return _cholesky(own[0])
    cross = factors[0].dot(factors[1])
    top = np.concatenate([own[0], cross], axis=-1)
    bottom = np.concatenate([cross.swapaxes(-1, -2), own[1]], axis=-1)
    return _cholesky(np.concatenate([top, bottom], axis=-2))


@exact()
def triangle(factors: list[Factor]) -> Float[Small, "*stack m columns"]:
    """Return a triangle that is right to rounding, however near the factors' spaces are.

    The second factor is split into Y = X C + E. E is computed by subtraction, so it is right to
    the rounding of Y, and small where Y is near; its Gram matrix is its own. C solves the normal
    equations and is corrected once (Björck 1987). Where the first factor is too ill-conditioned
    for that, or E has dependent columns: Householder's QR of all columns. NaN and Inf in a factor
    show in the result.
    """
    first = gram_triangle(factors[:1])
    if first is None or len(factors) == 1 or not np.diagonal(first, axis1=-2, axis2=-1).all():
        return _householder(factors)
    x, y = _together(factors)
    left, rest = as_factor(x), y
    share: Any = 0.0
    for _ in range(2):
        # R^-1 (R^-T (Xt E)): two solutions with a triangle rather than one with its square.
        turned = np.linalg.solve(first.swapaxes(-1, -2), left.dot(as_factor(rest)))
        step = np.linalg.solve(first, turned)
        rest = rest - x @ _like(step, x)
        share = share + step
    second = _root(as_factor(rest).dot(as_factor(rest)), float((y * y).sum()))
    if second is None:
        return _householder(factors)
    below = np.zeros((*second.shape[:-1], first.shape[-1]))
    top = np.concatenate([first, first @ share], axis=-1)
    return np.concatenate([top, np.concatenate([below, second], axis=-1)], axis=-2)


def _cholesky(gram: Float[Small, "*stack m m"]) -> Float[Small, "*stack m m"] | None:
    """Return the Cholesky factor of a Gram matrix whose columns are not nearly dependent."""
    length = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    if not np.isfinite(length).all():
        return None
    live = length > 0
    weight = np.where(live, 1 / np.where(live, length, 1), 0.0)
    unit = weight[..., :, None] * gram * weight[..., None, :]
    unit += np.where(live, 0.0, 1.0)[..., :, None] * np.eye(length.shape[-1])
    try:
        root = np.linalg.cholesky(unit).swapaxes(-1, -2)
    except np.linalg.LinAlgError:
        return None
    if np.diagonal(root, axis1=-2, axis2=-1).min(initial=1.0) < NEAR / 10:
        return None
    scaled: Small = root * length[..., None, :]
    return scaled


def _root(gram: Float[Small, "*stack m m"], whole: float) -> Float[Small, "*stack m m"] | None:
    """Return a square root of what is left of ``whole``, a squared norm, if it has the digits."""
    root = _cholesky(gram)
    if root is not None:
        return root
    # The root of a singular matrix has half of the digits: enough of next to nothing.
    size = float(np.trace(gram, axis1=-2, axis2=-1).sum())
    if not size <= (NEAR**2) ** 2 * whole:
        return None
    values, vectors = np.linalg.eigh(gram)
    spread: Small = np.sqrt(values.clip(min=0))[..., :, None] * vectors.swapaxes(-1, -2)
    return spread


def _householder(factors: list[Factor]) -> Float[Small, "*stack m columns"]:
    arrays = _together(factors)
    if isinstance(arrays[0], np.ndarray):
        return np.asarray(np.linalg.qr(np.concatenate(arrays, axis=-1), mode="r"))
    import torch  # the factors are on a device

    result: Small = torch.linalg.qr(torch.cat(arrays, dim=-1), mode="r").R.cpu().numpy()
    return result


def _together(factors: list[Factor]) -> list[Array]:
    """Return the factors in float64: in numpy if all are on the host, else on their device."""
    arrays = [factor.wide for factor in factors]
    if any(not isinstance(array, np.ndarray) and array.device.type != "cpu" for array in arrays):
        return arrays
    return [np.asarray(array) for array in arrays]


def _like(small: Small, array: Array) -> "np.ndarray | Tensor":
    if isinstance(array, np.ndarray):
        return small
    return tensor(small).to(array)
