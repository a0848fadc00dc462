"""The largest singular values of a dense matrix, and how much larger the true ones may be.

A block Lanczos on DᵀD takes up fresh random vectors half-way. They are independent of everything
computed before, so they bound what that left out, and they extend the basis at the same time.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_tools.linalg.certificate import ROUNDING, Ritz, growth, ideal, reach
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import Small
from lora_tools.linalg.operator import Operator
from lora_tools.shapes import Float
from lora_tools.update import Array

SMALL = 512
"""Matrices with a side of at most this are decomposed in full: that is as fast."""
TRIALS = 48
"""How often the certificate may be looked at; each look may fail with a share of the chance."""
FINEST = 1e-6
"""Errors below this share of ‖D‖ are rounding, even in float64."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What the certificate has to show."""

    tolerance: float = 1e-3
    """How far the error may lie above the certified bound, relative to the bound."""
    chance: float = 1e-6
    """The probability that the bound may fail with."""
    exact: bool = False
    """Decompose in full at once."""
    small: int = SMALL


class Leading(NamedTuple):
    """The leading singular triples of a matrix D, as far as one side of them."""

    squares: Float[Small, " k"]
    """Squares of the approximate singular values, descending; never above the true sums."""
    reach: Float[Small, " ranks"]
    """Upper bounds of the sums of the 0, 1, …, k largest squares."""
    vectors: Array
    """(m, k) left singular vectors, or (k, n) right ones, according to ``side``."""
    side: str
    method: str
    steps: int
    """Passes over D that found them."""


@exact()
def leading(
    matrix: Operator, rank: int, precision: Precision, name: str = "", *, every: bool = False
) -> Leading:
    """Return ``rank`` singular triples and the certificate, to within the tolerance.

    With ``every`` the tolerance holds at each rank up to ``rank``, else at ``rank`` alone. Random
    numbers depend on ``name`` only. Float32 products are used where their rounding does not
    matter, then float64, and at last a Gram matrix of the smaller side is decomposed in full.
    """
    side = min(matrix.shape)
    rank = min(rank, side)
    if not precision.exact and side > precision.small and 8 * rank <= side:
        for dtype in ("float32", "float64"):
            lanczos = _Lanczos(matrix, rank, precision, dtype, name, every=every)
            found = lanczos.run()
            if found is not None:
                return found
            if not lanczos.coarse:
                break  # finer products would not close it either
    return full(matrix, rank)


@exact()
def full(matrix: Operator, rank: int) -> Leading:
    """Return ``rank`` triples from the Gram matrix of the smaller side, in float64.

    Costs O(m·n·min(m, n) + min(m, n)³). Resolves singular values to about 1e-8 of the largest.
    """
    gram, left = matrix.inner()
    values, vectors = np.linalg.eigh(gram)
    squares = values[::-1][:rank].clip(min=0)
    top = vectors[:, ::-1][:, :rank]
    basis = matrix.array(top if left else top.T, "float64")
    sums = np.append(0.0, np.cumsum(squares)) + ROUNDING["float64"] * float(
        squares.max(initial=0.0)
    )
    return Leading(squares, sums, basis, "left" if left else "right", "gram", 1)


class _Lanczos:
    """One run: a basis Q of orthonormal rows that grows by a block per pass over D."""

    def __init__(
        self,
        matrix: Operator,
        rank: int,
        precision: Precision,
        dtype: str,
        name: str,
        *,
        every: bool,
    ) -> None:
        seed = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self.random = np.random.default_rng(int.from_bytes(seed, "little"))
        self.matrix, self.rank, self.dtype = matrix, rank, dtype
        self.precision, self.every = precision, every
        side = min(matrix.shape)
        # Half as wide as the rank, and six deep: narrower blocks converge in fewer products,
        # wider ones multiply faster.
        self.width = max(16, 8 * -(-rank // 16))
        self.depth = max(3, -(-3 * rank // self.width))
        self.fresh = 16
        self.limit = min(side // 3, 512 + 4 * rank)
        self.room = self.limit + 2 * (self.width + self.fresh)
        self.q = matrix.array(np.zeros((self.room, matrix.shape[1]), np.float32), dtype)
        self.t = np.zeros((self.room, self.room))
        self.size = self.first = self.steps = self.since = self.trials = 0
        self.residual = np.zeros((0, 0))
        self.coarse = False
        """Whether rounding, and not the spectrum, was in the way."""

    def run(self) -> Leading | None:
        """Return the triples once they are certified; None if this precision cannot do it."""
        block = self._orthonormal(self._gauss(self.width))[0]
        while self.size + len(block) <= self.limit:
            block = self._extend(block)
            self.since += 1
            if self.first == 0:
                if self.steps == self.depth:
                    self.coarse = not self._resolves()
                    if self.coarse:
                        return None
                    block = self._refresh(block)
                continue
            known = _Values(self.t[: self.size, : self.size], self.first)
            found = self._certified(known)
            if found is not None:
                return found
            if self.since >= 4 and self._hopeless(known):
                block = self._refresh(block)
        return None

    def _extend(self, block: Array) -> Array:
        """Take a block up into the basis; return the next one."""
        start, stop = self.size, self.size + len(block)
        self.q[start:stop] = block
        self.size, self.steps = stop, self.steps + 1
        image = self.matrix.gram(block)
        q = self.q[:stop]
        weights = image @ q.T
        image = image - weights @ q
        again = image @ q.T
        image = image - again @ q
        host = self.matrix.host(weights).astype(np.float64) + self.matrix.host(again)
        self.t[start:stop, :stop] = host
        self.t[:stop, start:stop] = host.T
        corner = self.t[start:stop, start:stop]
        self.t[start:stop, start:stop] = (corner + corner.T) / 2
        following, triangle = self._orthonormal(image)
        self.residual = self.matrix.host(triangle).astype(np.float64)
        return following

    def _orthonormal(self, rows: Array) -> tuple[Array, Array]:
        """Return orthonormal rows, orthogonal to the basis, and R with rows = Rᵀ·Q + (basis)."""
        xp = self.matrix.xp
        q, r = xp.linalg.qr(rows.T)
        # What was nearly zero is rounding noise after its normalisation: once more, then.
        known = self.q[: self.size]
        clean = q.T - (q.T @ known.T) @ known
        q, r2 = xp.linalg.qr(clean.T)
        return xp.asarray(q.T), r2 @ r

    def _refresh(self, block: Array) -> Array:
        """Begin to measure what the basis leaves out: add fresh random rows to the next block."""
        self.first, self.since = self.size, 0
        both = self.matrix.xp.concatenate([block, self._gauss(self.fresh)])
        known = self.q[: self.size]
        return self._orthonormal(both - (both @ known.T) @ known)[0]

    def _gauss(self, width: int) -> Array:
        shape = (width, self.matrix.shape[1])
        return self.matrix.array(self.random.standard_normal(shape, np.float32), self.dtype)

    def _allowance(self, values: Float[Small, " p"]) -> float:
        """Return what rounding may hide in a sum of ``rank`` eigenvalues."""
        return ROUNDING[self.dtype] * math.sqrt(self.rank) * float(values[-1])

    def _resolves(self) -> bool:
        """Whether the tail is large enough to be seen past rounding."""
        if self.dtype == "float64":
            return True
        values = np.linalg.eigvalsh(self.t[: self.size, : self.size])
        tail = self.matrix.squared - float(values[-self.rank :].sum())
        return self._allowance(values) < self.precision.tolerance * tail / 2

    def _certified(self, known: "_Values") -> Leading | None:
        """Return the triples if the certificate shows what it has to."""
        # Every step that could end the run spends its share of the chance, whether it does or not.
        self.trials += 1
        if self.trials > TRIALS:
            return None
        space = self.matrix.shape[1] - self.first
        chance = self.precision.chance / TRIALS
        rest = growth(space, self.fresh, self.since, chance) * known.fresh
        if not self._suffices(known.all, rest):
            return None
        t = self.t[: self.size, : self.size]
        values, vectors = np.linalg.eigh(t)
        last = vectors[self.size - self.residual.shape[1] :]
        sums = reach(Ritz(values, self.residual @ last, rest), self.rank)
        sums = sums + self._allowance(values)
        squares = values[::-1][: self.rank].clip(min=0)
        ranks = range(1, self.rank + 1) if self.every else (self.rank,)
        if not all(self._within(float(squares[:r].sum()), float(sums[r])) for r in ranks):
            return None
        top = self.matrix.array(vectors[:, ::-1][:, : self.rank].T, self.dtype)
        basis = top @ self.q[: self.size]
        return Leading(squares, sums, basis, "right", f"krylov {self.dtype}", self.steps)

    def _hopeless(self, known: "_Values") -> bool:
        """Whether even the exact norm of what the basis left out would not be enough."""
        return not self._suffices(known.all, known.fresh)

    def _suffices(self, values: Float[Small, " p"], rest: float) -> bool:
        """Whether a bound of the rest would do if nothing coupled to it."""
        bound = ideal(values, rest, self.rank) + self._allowance(values)
        return self._within(float(values[-self.rank :].sum()), bound)

    def _within(self, kept: float, most: float) -> bool:
        whole = self.matrix.squared
        error = math.sqrt(max(whole - kept, 0.0))
        least = math.sqrt(max(whole - most, 0.0))
        return error - least <= max(self.precision.tolerance * least, FINEST * math.sqrt(whole))


class _Values:
    """The eigenvalues of T, and the largest of the part that fresh vectors began."""

    def __init__(self, t: Float[Small, "p p"], first: int) -> None:
        self.all: Float[Small, " p"] = np.linalg.eigvalsh(t)
        self.fresh = float(np.linalg.eigvalsh(t[first:, first:])[-1])
