"""Principal angles between subspaces, exact for tiny angles, too."""

import numpy as np

from lora_tools.linalg.factors import Small
from lora_tools.shapes import Float


def principal_angles(
    u: Float[Small, "n k"], v: Float[Small, "n l"]
) -> Float[np.ndarray, " angles"]:
    """Return the min(k, l) angles between the spans of orthonormal columns: radians, ascending.

    Cosines are the singular values of ``u.T @ v`` (Björck & Golub 1973). A cosine near 1 knows its
    angle only to 1e-8, so angles below 45 degrees are taken from the sines: the singular values
    of what the larger space leaves of the smaller (Knyazev & Argentati 2002).

    >>> principal_angles(np.eye(3, 1), np.array([[1.0], [1e-12], [0.0]]))
    array([1.e-12])
    """
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    cosines = np.linalg.svd(u.T @ v, compute_uv=False)
    sines = np.linalg.svd(outside(u, v), compute_uv=False)[::-1]
    steep = np.arccos(cosines.clip(max=1.0))
    angles: np.ndarray = np.where(np.square(cosines) >= 0.5, np.arcsin(sines.clip(max=1.0)), steep)
    return np.sort(angles)


def outside(u: Float[Small, "n k"], v: Float[Small, "n l"]) -> Float[Small, "n l"]:
    """Return what is left of the columns of ``v`` outside the span of the orthonormal ``u``."""
    rest: Small = v - u @ (u.T @ v)
    return rest
