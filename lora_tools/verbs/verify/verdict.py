"""Verdicts: what the evidence says of a merged tensor, in a word and in a sentence."""

import math
from dataclasses import dataclass
from typing import Literal

from lora_tools.merging import TensorPlan
from lora_tools.verbs.verify.evidence import FEW, Evidence

Outcome = Literal[
    "copied",
    "exact",
    "rounding",
    "not merged",
    "wrong strength",
    "different",
    "untouched changed",
    "missing",
]
PASSED: frozenset[Outcome] = frozenset({"copied", "exact", "rounding"})

MOSTLY = 1 - 1e-4
"""The share of elements that have to agree with an explanation: float32 sums round a few away."""

SURE = 5.0
"""By how many standard deviations a strength has to differ from the one expected."""


@dataclass(frozen=True, slots=True)
class MergeVerdict:
    """What became of one tensor."""

    tensor: str
    outcome: Outcome
    reason: str = ""
    strength: float | None = None
    """What the update seems to be multiplied by, where one number explains the tensor."""

    @property
    def passed(self) -> bool:
        """Whether the tensor is what a merge may make of it."""
        return self.outcome in PASSED


def judge(entry: TensorPlan, evidence: Evidence, cast: str) -> MergeVerdict:
    """Return the verdict on a tensor."""
    key, e = entry.key, evidence
    if entry.plain:
        return _copy(entry, e)
    if e.equal + e.close == e.elements:
        return MergeVerdict(key, "exact")
    if e.equal + e.close + e.near == e.elements:
        early = e.early >= MOSTLY * e.elements
        how = f"the update was rounded to {cast} before it was added, as PEFT does" if early else ""
        off = e.elements - e.equal - e.close
        return MergeVerdict(
            key, "rounding", how or f"{off:,} of {e.elements:,} elements a step away"
        )
    if e.base == e.elements and e.due:
        return MergeVerdict(key, "not merged", "it is the base's", 0.0)
    off = e.elements - e.equal - e.close - e.near
    return _strength(entry, e) or MergeVerdict(
        key, "different", f"{off:,} of {e.elements:,} elements are more than rounding away"
    )


def _copy(entry: TensorPlan, e: Evidence) -> MergeVerdict:
    if e.equal == e.elements:
        return MergeVerdict(entry.key, "exact" if entry.source.adapter else "copied")
    outcome: Outcome = "different" if entry.source.adapter else "untouched changed"
    return MergeVerdict(
        entry.key, outcome, f"{e.elements - e.equal:,} of {e.elements:,} bytes differ"
    )


def _strength(entry: TensorPlan, e: Evidence) -> MergeVerdict | None:
    """Say with which strength an update was added, if any explains the tensor.

    The least-squares strength f minimises ``||(M - W) - f dW||``. What is left has to be rounding:
    at most half a step before and half a step after the sum, of variance step**2 / 12 each.
    """
    off = e.elements - e.equal - e.close - e.near
    few = off < FEW * e.elements  # too few for a strength: somebody changed single numbers
    dora = any(patch.dora for patch in entry.patches)
    update, error = e.tally.update, e.tally.error
    if few or dora or e.broken or not update or not e.floor:
        return None
    if not all(map(math.isfinite, (e.dot, update, error, e.floor))):
        return None  # squares that float64 cannot hold say nothing of a strength
    strength = e.dot / update
    rest = max(error - (strength - 1) ** 2 * update, 0.0)
    change = max(error + (2 * strength - 1) * update, 0.0)
    noise = e.floor / 12
    if rest > 4 * noise + 1e-9 * change:
        return None
    if abs(strength - 1) < SURE * math.sqrt(noise / update):
        return None
    scales = set(entry.modules.values())
    if len(scales) == 1:
        scale = scales.pop()
        seen = f"looks like scale {scale * strength:.4g} instead of {scale:.4g}"
    else:
        seen = f"looks like {strength:.4g} times what was asked for"
    return MergeVerdict(entry.key, "wrong strength", seen, strength)
