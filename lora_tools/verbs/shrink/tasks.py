"""The two jobs of a shrink, one module each: find its spectrum, and write it at another rank."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.files.dtypes import DTYPES
from lora_tools.formats.finite import not_finite, sound
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact, placed
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.linalg.svd import core
from lora_tools.linalg.tall import Held, Small, hold, padded
from lora_tools.linalg.truncate import truncate
from lora_tools.report import Change, Row
from lora_tools.scaling import alpha_for
from lora_tools.shapes import Float
from lora_tools.update import LowRank, Update, factors
from lora_tools.verbs.shrink.source import Source


class Goal(NamedTuple):
    """What is to become of a module: the rank it keeps, and how it is written."""

    r: int
    target: Module
    """Its rank may be larger than ``r``: zeros fill it up."""


class Made(NamedTuple):
    """A change that is made already, and what for."""

    goal: Goal
    change: Change


class Decomposed(NamedTuple):
    """A module's singular values, and what turns its B into the best B of every lower rank."""

    s: Float[Small, "*stack rank"]
    left: Float[Small, "*stack rank rank"]
    made: Made | None = None
    """The change to the goal that was guessed, made while the factors were at hand."""

    @property
    def is_zero(self) -> bool:
        """Whether the module adds nothing."""
        return not bool(self.s.any())


@dataclass(frozen=True, slots=True)
class Job:
    """A module to decompose; with a guess at its goal, to be written in the same breath."""

    adapter: Source
    module: Module
    device: str
    guess: Goal | None = None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A module to write."""

    of: Job
    goal: Goal
    found: Decomposed


@exact()
def decompose(job: Job) -> Decomposed:
    """Return the spectrum of one module; `NonFiniteError` names the tensor that has none."""
    update = _update(job)
    path, module = job.adapter.tensors.path, job.module
    if not sound(update):
        raise not_finite(path, module, update, "")
    try:
        held = hold(factors(update))
        heart = core(factors(update), held)
    except NonFiniteError as error:
        raise not_finite(path, module, update, error) from error
    found = Decomposed(heart.s, heart.left)
    if job.guess is None or found.is_zero:
        return found
    change = _change(Rewrite(job, job.guess, found), update, held)
    return found._replace(made=Made(job.guess, change))


@exact()
def rewrite(job: Rewrite) -> Change:
    """Return the module's update as its goal says, with what it cost."""
    made = job.found.made
    if made and _alike(made.goal, job.goal):
        return made.change
    update = _update(job.of)
    return _change(job, update, hold(factors(update)))


def _change(job: Rewrite, before: Update, held: Held) -> Change:
    (r, target), found, old = job.goal, job.found, factors(before)
    alpha = alpha_for(target.scale, r, rslora=target.rslora)
    try:
        if r < job.of.module.r:
            new, lost = truncate(
                old,
                found.s,
                found.left,
                r // target.groups,
                dtypes=_dtypes(target),
                alpha=alpha,
                rslora=target.rslora,
                held=held,
            )
        else:
            new, lost = rescale(old, dtypes=_dtypes(target), alpha=alpha, rslora=target.rslora)
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.of.adapter.path}: {job.of.module.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    after = refactored(before, _filled(new, target))
    row = _row(job, lost + bias_error(before, after), unchanged=new.b is old.b and new.a is old.a)
    return Change(job.of.module.name, after, row)


def _update(job: Job) -> Update:
    """Read a module's update: into arrays of numpy on the host, into torch's on a device."""
    if job.device == "cpu":
        return job.adapter.update(job.module)
    update = job.adapter.update(job.module, on_host=False)
    low = factors(update)
    moved = replace(low, a=placed(low.a, job.device), b=placed(low.b, job.device))
    return refactored(update, moved)


def _alike(x: Goal, y: Goal) -> bool:
    """Whether two goals are the same numbers, whatever the tensors are called."""
    same = (x.target.alpha, x.target.rslora, x.target.r) == (
        y.target.alpha,
        y.target.rslora,
        y.target.r,
    )
    return same and x.r == y.r and _dtypes(x.target) == _dtypes(y.target)


def _dtypes(target: Module) -> tuple[str, str]:
    b, a = (str(DTYPES[target.parts[role].spec.dtype].torch) for role in ("b", "a"))
    return b, a


def _filled(update: LowRank, target: Module) -> LowRank:
    """Fill up to the target's rank with zeros, and take over its alpha."""
    more = target.rank - update.rank
    b, a = padded(update.b, more), padded(update.a.swapaxes(-1, -2), more).swapaxes(-1, -2)
    return replace(update, a=a, b=b, alpha=target.alpha)


def _row(job: Rewrite, squared_error: float, *, unchanged: bool) -> Row:
    module, s, r = job.of.module, job.found.s, job.goal.r
    rest = s[..., r // module.groups :]
    whole, tail = float(np.square(s).sum()), float(np.square(rest).sum())
    shrunk = r < module.r
    outcome = "shrunk" if shrunk else "kept" if unchanged else "rewritten"
    return Row(
        module=module.name,
        shape=module.shape,
        rank_before=module.r,
        rank_after=r,
        rank_stored=job.goal.target.r,
        norm=math.sqrt(whole),
        energy=1 - tail / whole if whole else 1.0,
        error=math.sqrt(squared_error / whole) if whole else 0.0,
        optimal_error=math.sqrt(tail / whole) if whole else 0.0,
        sigma_max=float(s.max()),
        sigma_discarded=float(rest.max()) if shrunk else 0.0,
        outcome=outcome if whole else "zero",
    )
