"""The jobs of a rewrite, one module each, and what is found of a module on the way."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Module
from lora_tools.linalg.factors import Small
from lora_tools.linalg.krylov import Leading
from lora_tools.linalg.spectrum import tail
from lora_tools.rewrite.source import Made, Source
from lora_tools.shapes import Float


class Target(NamedTuple):
    """What is to become of a module: the rank it keeps, and how it is written."""

    r: int
    module: Module
    """Its rank may be larger than ``r``: zeros fill it up."""


class Decomposition(NamedTuple):
    """A module's singular values, and what turns its B into the best B of every lower rank."""

    s: Float[Small, "*stack rank"]
    """Of a sum of full rank the largest alone."""
    left: Float[Small, "*stack rank k"]
    rest: float = 0.0
    """The squared norm of what has no singular value here."""
    reach: Float[Small, " ranks"] | None = None
    """Upper bounds of the sums of the 0, 1, … largest squares; None: the values are exact."""
    leaders: tuple[Leading, ...] = ()
    """The singular vectors of each member of a sum of full rank."""

    @property
    def tail(self) -> Float[np.ndarray, " ranks"]:
        """Squared norm of what is left when 0, 1, … values are kept."""
        left: np.ndarray = tail(self.s) + self.rest
        return left

    @property
    def is_zero(self) -> bool:
        """Whether the module adds nothing."""
        return not bool(self.s.any())


@dataclass(frozen=True, slots=True)
class RewriteJob:
    """One module of a rewrite: where it lies, what it is, and what is to become of it.

    Pickled it is an address of less than 4 kB: the decomposition stays behind, and is found again.
    """

    source: Source
    module: Module
    device: str
    target: Target | None = None
    known: Decomposition | None = None
    surveyed: bool = False
    """Whether the decomposition is known, be it in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        surveyed = self.surveyed or self.known is not None
        return RewriteJob, (self.source, self.module, self.device, self.target, None, surveyed)

    @property
    def lacks_decomposition(self) -> bool:
        """Whether it is not at hand, or not as much of it as the target needs."""
        if self.known is None or self.target is None:
            return self.surveyed
        r = self.target.r
        return r < self.module.r and self.known.left.shape[-1] < r // self.module.groups

    @property
    def adapter(self) -> Adapter:
        """The adapter that it is read from."""
        return self.source.adapter

    @property
    def origin(self) -> Made:
        """What of its adapters it is made of."""
        return self.source.origins[self.module.name]
