"""Rules in the core space of stacked factors: small matrices in common orthonormal bases.

With orthonormal bases Q_B of the columns of all B and Q_A of the rows of all A, the weighted update
of adapter i is ``Q_B core_i Q_At``, and so is the result of each rule. Every basis has the same
singular values and angles; the one that is used has the principal directions of the stacked factors
(Panariello et al. 2025, arXiv 2509.17786), on which rules that see elements depend.
"""

from collections.abc import Sequence

import numpy as np

from lora_tools.rules.elementwise import ties
from lora_tools.shapes import Float

Core = np.ndarray
"""One weighted update in the bases, in float64."""


def core_ties(cores: Sequence[Float[Core, "m n"]], *, density: float = 0.2) -> Float[Core, "m n"]:
    """Apply TIES to the elements of the cores.

    Core space merging (Panariello et al. 2025, arXiv 2509.17786) with TIES as its rule.

    >>> core_ties([np.diag([4.0, 1.0]), np.diag([2.0, -5.0])], density=0.5)
    array([[ 3.,  0.],
           [ 0., -5.]])
    """
    return ties(cores, density=density)


def iso(cores: Sequence[Float[Core, "m n"]]) -> Float[Core, "m n"]:
    """Give the sum equal singular values: the mean of those that it has.

    Iso-C (Marczak et al. 2025, arXiv 2502.04959, section 4.1), over the directions of the sum.

    >>> iso([np.diag([3.0, 0.0]), np.diag([0.0, 1.0])])
    array([[2., 0.],
           [0., 2.]])
    """
    u, s, vt = np.linalg.svd(np.sum(cores, axis=0), full_matrices=False)
    live = s > 1e-10 * s[:1]
    level = s[live].mean() if live.any() else 0.0
    flat: np.ndarray = level * (u[:, live] @ vt[live]) + 0.0
    return flat


def tsv(cores: Sequence[Float[Core, "m n"]], *, share: float = 0.0) -> Float[Core, "m n"]:
    """Keep the leading singular vectors of each update, and make those of all orthonormal.

    TSV-Merge (Gargiulo et al. 2025, arXiv 2412.00081, algorithm 1): of n updates each keeps a
    ``share`` of its rank, 1/n if 0; the vectors of all are replaced by the nearest orthonormal
    ones (Procrustes), and the singular values stay.

    >>> tsv([np.diag([3.0, 0.0]), np.diag([0.0, 2.0])], share=1.0)
    array([[3., 0.],
           [0., 2.]])
    """
    kept = [_leading(core, share or 1 / len(cores)) for core in cores]
    u = np.concatenate([each[0] for each in kept], axis=1)
    s = np.concatenate([each[1] for each in kept])
    vt = np.concatenate([each[2] for each in kept])
    merged: np.ndarray = (_orthonormal(u) * s) @ _orthonormal(vt.T).T + 0.0
    return merged


def knots(rows: Sequence[Float[Core, "m inp"]], *, density: float = 0.2) -> Float[Core, "m inp"]:
    """Align updates by one decomposition of all side by side, and apply TIES to the aligned parts.

    KnOTS-TIES (Stoica et al. 2024, arXiv 2410.19735): ``[dW_1 … dW_n] = U S [V_1t … V_nt]``; the
    V are merged elementwise, and U and S put back. The rows are updates in the basis of the
    columns alone, since the elements of V are those of the model's inputs.

    >>> knots([np.diag([4.0, 0.0]), np.diag([0.0, 2.0])], density=1.0).round(9)
    array([[4., 0.],
           [0., 2.]])
    """
    width = rows[0].shape[1]
    u, s, vt = np.linalg.svd(np.concatenate(rows, axis=1), full_matrices=False)
    parts = [vt[:, width * n : width * (n + 1)] for n in range(len(rows))]
    merged: np.ndarray = (u * s) @ ties(parts, density=density) + 0.0
    return merged


def _leading(core: Float[Core, "m n"], share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the leading singular vectors of an update: a share of its rank, and one at least."""
    u, s, vt = np.linalg.svd(core, full_matrices=False)
    rank = int((s > 1e-10 * s[:1]).sum())
    count = min(max(int(share * rank), 1), len(s))
    return u[:, :count], s[:count], vt[:count]


def _orthonormal(vectors: Float[Core, "m k"]) -> Float[Core, "m k"]:
    """Return the nearest matrix with orthonormal columns (of rows, if those are fewer)."""
    p, _, qt = np.linalg.svd(vectors, full_matrices=False)
    nearest: np.ndarray = p @ qt
    return nearest
