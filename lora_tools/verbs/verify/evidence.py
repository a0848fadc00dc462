"""Evidence: a merged tensor beside the sum that it should be, element by element."""

from dataclasses import dataclass, replace
from operator import add
from typing import Any, NamedTuple

import numpy as np

from lora_tools.files.address import Address, reopened
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.fingerprint import check_state
from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.files.opening import open_partly
from lora_tools.files.place import Reader
from lora_tools.linalg.apply import Gain, normalise
from lora_tools.linalg.exact import exact
from lora_tools.linalg.rounding import round_into
from lora_tools.linalg.stored import DIGITS, WIDTH, spacing, widen
from lora_tools.linalg.tally import Tally, tally
from lora_tools.merging import MergePlan, TensorPlan
from lora_tools.merging.strips import Strip, by_columns, height, strips, tokens
from lora_tools.shapes import Float

CHUNK = 1 << 23
"""Elements of a job."""

FEW = 0.01
"""The share of elements that are worth a look of their own."""

SLACK = 2.0**-21
"""What float32 sums of products may be off by, relative to their terms."""


class Evidence(NamedTuple):
    """Counts and sums over the elements of a tensor, or of a part of it."""

    elements: int = 0
    equal: int = 0
    """Elements that are the correctly rounded sum."""
    close: int = 0
    """Others that float32 sums of products may have rounded the other way."""
    near: int = 0
    """Others within one step of the sum, or what rounding dW before it was added explains."""
    early: int = 0
    """Elements that are W + round(dW), rounded: the cast before the sum."""
    base: int = 0
    """Elements that the base has, too."""
    due: int = 0
    """Elements that should differ from the base's."""
    tally: Tally = Tally()
    """What became of dW, over the parts that are not all equal; the next three likewise."""
    dot: float = 0.0
    """``<M - W, dW>``."""
    floor: float = 0.0
    """The sum of squared steps: 12 times what rounding alone leaves."""
    broken: int = 0
    """Elements that are NaN or Inf."""

    def __add__(self, other: object) -> "Evidence":
        """Return the evidence of both."""
        if not isinstance(other, Evidence):
            return NotImplemented
        return Evidence(*map(add, self, other))


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Rows of an entry to compare with the tensor that claims to be it."""

    merge_plan: MergePlan
    key: str
    rows: tuple[int, int]
    merged: Checkpoint
    name: str
    """What the merged model calls the tensor."""
    cast: str
    """The coarsest type that an update may have been rounded to before it was added."""

    def __reduce__(self) -> tuple[Any, ...]:
        merged = Address(_merged_again, (self.merged.path.absolute(), self.merged.state))
        return _job, (self.merge_plan, self.key, self.rows, merged, self.name, self.cast)

    @property
    def spec(self) -> Spec:
        """Of the merged tensor."""
        return self.merged.specs[self.name]

    @property
    def entry(self) -> TensorPlan:
        """What the tensor should be, in the type that it has."""
        entry = self.merge_plan.entries[self.key]
        return replace(entry, spec=self.spec) if self.spec != entry.spec else entry


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a job found."""

    key: str
    evidence: Evidence


@exact()
def examine(job: VerifyJob) -> VerifyResult:
    """Compare the rows of a job."""
    entry = job.entry
    if entry.plain and job.spec == entry.spec:
        return VerifyResult(entry.key, _bytes(job))
    total = Evidence()
    code, width = job.spec.dtype, entry.table[1] * WIDTH[job.spec.dtype]
    trained = dict(tokens(entry, job.rows))
    with Reader(_values(job)) as merged:
        for strip in strips(entry, job.rows, np.float64):
            shape = (strip.last - strip.first, entry.table[1])
            base, delta, terms = _sides(strip, shape)
            for row in range(strip.first, strip.last) if trained else ():
                if row in trained:
                    delta.reshape(shape)[row - strip.first] = (
                        trained[row] - base.reshape(shape)[row - strip.first]
                    )
            raw = merged.read(strip.first * width, strip.last * width)
            total += _weigh(base, delta, terms, raw, code, job.cast)
    return VerifyResult(entry.key, total)


def _job(
    merge_plan: MergePlan, key: str, rows: tuple[int, int], merged: Address, *more: str
) -> VerifyJob:
    name, cast = more
    return VerifyJob(merge_plan, key, rows, reopened(merged), name, cast)


def _merged_again(path: Location, before: str) -> Checkpoint:
    """Open a merged model that another process has open, of which shards may be missing."""
    found, _ = open_partly(path)
    check_state(path, found.state, before)
    return found


def chunks(entry: TensorPlan) -> list[tuple[int, int]]:
    """Return the ranges of rows that an entry is examined in."""
    rows, width = entry.table
    if by_columns(entry) or entry.plain or not rows:
        return [(0, rows)]
    step = max(height(entry), CHUNK // max(width, 1) // height(entry) * height(entry))
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _sides(
    strip: Strip, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Return W and dW in float64, dequantised and normalised, and a bound on the terms of dW."""
    base = np.empty(shape[0] * shape[1])
    strip.decode(base)
    delta, terms = np.zeros_like(base), np.zeros_like(base)
    if strip.left is not None and strip.right is not None:
        np.matmul(strip.left, strip.right, out=delta.reshape(shape))
        terms = _terms(strip.left, strip.right)
        if strip.gain:
            terms = (np.abs(base) + terms).reshape(shape) * _factor(base + delta, strip.gain, shape)
            normalise(base, delta, strip.gain, shape[0])
    return base, delta, terms.reshape(-1)


def _weigh(
    base: Float[np.ndarray, "n"],
    delta: Float[np.ndarray, "n"],
    terms: Float[np.ndarray, "n"],
    raw: np.ndarray,
    code: str,
    cast: str,
) -> Evidence:
    total = base + delta
    merged, right = np.empty_like(base), np.empty_like(base)
    widen(raw, code, merged)
    round_into(total, code, np.empty(base.size * WIDTH[code], np.uint8), right)
    equal = merged == right
    due, kept = int(np.count_nonzero(right != base)), int(np.count_nonzero(merged == base))
    same = int(np.count_nonzero(equal))
    if same == base.size:
        return Evidence(base.size, same, early=same, base=kept, due=due)
    if same > base.size * (1 - FEW):  # the others are looked at alone
        some = np.flatnonzero(~equal)
        base, delta, total, merged = base[some], delta[some], total[some], merged[some]
        terms = terms[some]
        equal, early_too = equal[some], same
    else:
        early_too = 0
    step = spacing(total, code)
    off = np.abs(merged - total)
    slack = SLACK * (np.abs(base) + np.maximum(np.abs(delta), terms))
    close = ~equal & (off <= step / 2 + slack)
    before = spacing(delta, cast)
    # Rounded after dW was: half a step of the sum, and half of dW's, which may be the larger one.
    near = ~equal & ~close & (off <= np.maximum(step, (step + before) / 2) + slack)
    early, scratch = np.empty_like(base), np.empty_like(base)
    round_into(delta, cast, np.empty(base.size * WIDTH[cast], np.uint8), scratch)
    scratch += base
    round_into(scratch, code, np.empty(base.size * WIDTH[code], np.uint8), early)
    change = merged - base
    broken = ~np.isfinite(change)
    change[broken] = 0
    return Evidence(
        right.size,
        same,
        int(np.count_nonzero(close)),
        int(np.count_nonzero(near)),
        early_too + int(np.count_nonzero(merged == early)),
        kept,
        due,
        tally(delta, change),
        float(change @ delta),
        float(step @ step),
        int(np.count_nonzero(broken)),
    )


def _terms(
    left: Float[np.ndarray, "m r"], right: Float[np.ndarray, "r k"]
) -> Float[np.ndarray, "n"]:
    """Return a bound on the sums of |terms| that make dW: by Cauchy and Schwarz, from norms."""
    bound: Float[np.ndarray, n] = np.outer(
        np.sqrt(np.square(left).sum(1)), np.sqrt(np.square(right).sum(0))
    )
    return bound.reshape(-1)


def _factor(
    total: Float[np.ndarray, "n"], gain: Gain, shape: tuple[int, int]
) -> Float[np.ndarray, "_ _"]:
    """Return what DoRA multiplies rows, or columns, of W + dW with."""
    if gain.columns:
        columns: Float[np.ndarray, _] = np.abs(gain.magnitude)[None, :]
        return columns
    norms = np.sqrt(np.square(total.reshape(shape)).sum(1))
    rows: Float[np.ndarray, _] = np.abs(gain.magnitude / norms)[:, None]
    return rows


def _bytes(job: VerifyJob) -> Evidence:
    """Compare a tensor that should be a copy, byte by byte."""
    same, nbytes = 0, job.spec.nbytes
    with Reader(_values(job)) as merged, Reader(job.entry.source.values) as source:
        for start in range(0, nbytes, CHUNK):
            stop = min(start + CHUNK, nbytes)
            same += int(np.count_nonzero(merged.read(start, stop) == source.read(start, stop)))
    return Evidence(nbytes, same)


def _values(job: VerifyJob) -> Any:
    """Return where the merged tensor lies; a pickle's is in memory."""
    return job.merged.arrays.places[job.name]


def coarsest(*codes: str) -> str:
    """Return the type with the fewest digits."""
    return min(codes, key=lambda code: DIGITS[code])
