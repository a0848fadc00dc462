"""The two jobs of a shrink, one module each: find its spectrum, and write it at another rank."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.errors import NonFiniteError
from lora_tools.formats.base import Module
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.linalg.svd import core
from lora_tools.linalg.tall import Small, tall
from lora_tools.linalg.truncate import truncate
from lora_tools.report import Change, Row
from lora_tools.scaling import alpha_for
from lora_tools.shapes import Float
from lora_tools.storage.dtypes import DTYPES
from lora_tools.update import LowRank, Update, factors


class Decomposed(NamedTuple):
    """A module's singular values, and what turns its B into the best B of every lower rank."""

    s: Float[Small, "*stack rank"]
    left: Float[Small, "*stack rank rank"]

    @property
    def is_zero(self) -> bool:
        """Whether the module adds nothing."""
        return not bool(self.s.any())


@dataclass(frozen=True, slots=True)
class Job:
    """A module to decompose."""

    adapter: Adapter
    module: Module
    device: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A module to write as ``target``, keeping ``r`` of its ranks and padding the rest."""

    of: Job
    found: Decomposed
    r: int
    target: Module


def decompose(job: Job) -> Decomposed:
    """Return the spectrum of one module; `NonFiniteError` names the tensor that has none."""
    low = factors(_update(job))
    try:
        heart = core(low)
    except NonFiniteError as error:
        key = job.module.parts["a" if tall(low.b).is_finite() else "b"].key
        raise NonFiniteError(f"{job.adapter.tensors.path}: {key} holds NaN or Inf").hint(
            "Training has diverged, or the file is damaged; an earlier checkpoint may be sound."
        ) from error
    return Decomposed(heart.s, heart.left)


def rewrite(job: Rewrite) -> Change:
    """Return the module's update at the rank, scale and types of its target, with what it cost."""
    before, target = _update(job.of), job.target
    old, heart = factors(before), job.found
    b_type, a_type = (str(DTYPES[target.parts[role].spec.dtype].torch) for role in ("b", "a"))
    alpha = alpha_for(target.scale, job.r, rslora=target.rslora)
    try:
        if job.r < job.of.module.r:
            new, lost = truncate(
                old,
                heart.s,
                heart.left,
                job.r // target.groups,
                dtypes=(b_type, a_type),
                alpha=alpha,
                rslora=target.rslora,
            )
        else:
            new, lost = rescale(old, dtypes=(b_type, a_type), alpha=alpha, rslora=target.rslora)
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.of.adapter.path}: {job.of.module.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    after = refactored(before, _padded(new, target))
    row = _row(job, lost + bias_error(before, after), unchanged=new.b is old.b and new.a is old.a)
    return Change(job.of.module.name, after, row)


def _update(job: Job) -> Update:
    """Read a module's update: into arrays of numpy on the host, into torch's on a device."""
    if job.device == "cpu":
        return job.adapter.format.update(job.module, job.adapter.tensors.arrays)
    update = job.adapter.format.update(job.module, job.adapter.tensors)
    low = factors(update)
    moved = replace(low, a=low.a.to(job.device), b=low.b.to(job.device))
    return refactored(update, moved)


def _padded(update: LowRank, target: Module) -> LowRank:
    """Fill up to the target's rank with zeros, and take over its alpha."""
    more = target.rank - update.rank
    b, a = tall(update.b).padded(more), tall(update.a.swapaxes(-1, -2)).padded(more)
    return replace(update, a=a.array.swapaxes(-1, -2), b=b.array, alpha=target.alpha)


def _row(job: Rewrite, squared_error: float, *, unchanged: bool) -> Row:
    module, s = job.of.module, job.found.s
    rank = job.r // module.groups
    whole = float(np.square(s).sum())
    tail = float(np.square(s[..., rank:]).sum())
    shrunk = job.r < module.r
    outcome = "shrunk" if shrunk else "kept" if unchanged else "rewritten"
    return Row(
        module=module.name,
        shape=module.shape,
        rank_before=module.r,
        rank_after=job.r,
        rank_stored=job.target.r,
        norm=math.sqrt(whole),
        energy=1 - tail / whole if whole else 1.0,
        error=math.sqrt(squared_error / whole) if whole else 0.0,
        optimal_error=math.sqrt(tail / whole) if whole else 0.0,
        sigma_max=float(s.max()),
        sigma_discarded=float(s[..., rank:].max()) if shrunk else 0.0,
        outcome=outcome if whole else "zero",
    )
