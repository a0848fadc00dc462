"""Updates without the directions in which another update reads its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_tools.linalg.factors import host
from lora_tools.linalg.spectrum import numerical_rank
from lora_tools.linalg.svd import svd
from lora_tools.update import LowRank

ROUNDING = 1e-12
"""A share of a row of A below which what is left of it is rounding."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Projects one update onto what is orthogonal to another's leading inputs."""

    directions: int | None = None
    """How many of the other's right singular vectors; None: all that it has."""

    def __call__(self, updates: Sequence[LowRank], weights: Sequence[float], name: str) -> LowRank:
        """Return the first update times ``I - V @ Vt``, V the leading inputs of the second.

        From factors: ``A - (A @ V) @ Vt`` in place of A, and B as it is (Chen et al. 2025,
        NP-LoRA, arXiv 2511.11051). Costs O((out + inp) * r**2). Members of stacks are projected
        each by the other's of the same number.

        >>> x = LowRank(a=np.ones((1, 3)), b=np.ones((2, 1)), alpha=1)
        >>> Projection()([x, replace(x, a=np.eye(1, 3))], [], "").a
        array([[0., 1., 1.]])
        """
        update, other = updates
        _, s, vt = svd(other)
        if not s.any():
            return update
        count = min(self.directions or s.shape[-1], numerical_rank(s))
        v = host(vt[..., :count, :]).swapaxes(-1, -2)
        before = host(update.a)
        after = before - (before @ v) @ v.swapaxes(-1, -2)
        after -= (after @ v) @ v.swapaxes(-1, -2)  # what rounding left of them
        lengths = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (after, before))
        left, whole = lengths
        after[np.broadcast_to(left <= ROUNDING * whole, after.shape)] = 0.0
        return replace(update, a=after, b=host(update.b))
