"""The jobs of a rewrite, one module each: find its spectrum, and write it at another rank."""

from dataclasses import replace

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.files.dtypes import DTYPES
from lora_tools.formats.finite import broken, damaged, sound
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact, placed
from lora_tools.linalg.factors import Factors, factors_of, padded
from lora_tools.linalg.metrics import squared_norm
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.linalg.sums import is_rounding
from lora_tools.linalg.svd import core
from lora_tools.linalg.truncate import truncate
from lora_tools.report import Change
from lora_tools.rewrite.jobs import Decomposition, RewriteJob
from lora_tools.rewrite.rows import row_of
from lora_tools.rewrite.source import Sum
from lora_tools.scaling import alpha_for
from lora_tools.update import LowRank, Update, factors


@exact()
def decompose(job: RewriteJob) -> Decomposition:
    """Return the spectrum of one module; `NonFiniteError` names the tensor that has none."""
    return decomposed(job, *_read(job))


@exact()
def decompose_and_rewrite(job: RewriteJob) -> tuple[Decomposition, Change | None]:
    """Return the spectrum of one module and, unless it is zero, the module at its target."""
    update, update_factors = _read(job)
    found = decomposed(job, update, update_factors)
    return found, None if found.is_zero else _change(
        replace(job, known=found), update, update_factors
    )


@exact()
def rewrite(job: RewriteJob) -> Change:
    """Return the module's update as its target says, with what it cost."""
    if isinstance(job.origin, Sum) and job.origin.is_dense:
        from lora_tools.rewrite import dense  # which is made of what is here

        return dense.rewrite(job)
    update, update_factors = _read(job)
    if job.lacks_decomposition:
        job = replace(job, known=decomposed(job, update, update_factors))
    return _change(job, update, update_factors)


def named(job: RewriteJob, why: object) -> NonFiniteError:
    """Return the error that names what a module is made of and holds NaN or Inf, or says ``why``.

    What it is made of is read once more: a module may be some rows of one in the file, or several.
    """
    for adapter, module in job.origin.files(job.adapter):
        if keys := broken(module, adapter.update(module)):
            return damaged([f"{adapter.tensors.path}: {' and '.join(keys)}"])
    return NonFiniteError(f"{job.adapter.tensors.path}: {job.module.name}: {why}")


def _read(job: RewriteJob) -> tuple[Update, Factors]:
    """Read a module's update: into arrays of numpy on the host, into torch's on a device."""
    host = job.device == "cpu"
    update = job.source.update(job.module, on_host=host)
    if not sound(update):
        raise named(job, "")
    if not host:
        low = factors(update)
        moved = replace(low, a=placed(low.a, job.device), b=placed(low.b, job.device))
        update = refactored(update, moved)
    try:
        return update, factors_of(factors(update))
    except NonFiniteError as error:
        raise named(job, error) from error


def decomposed(job: RewriteJob, update: Update, update_factors: Factors) -> Decomposition:
    """Return the spectrum of an update that has been read; that of rounding is zero."""
    try:
        heart = core(factors(update), update_factors)
    except NonFiniteError as error:
        raise named(job, error) from error
    s = heart.s
    if isinstance(job.origin, Sum) and is_rounding(s, update_factors):
        return Decomposition(np.zeros_like(s), np.zeros_like(heart.left))
    return Decomposition(s, heart.left)


def _change(job: RewriteJob, before: Update, update_factors: Factors) -> Change:
    assert job.target is not None
    (r, target), known, old = job.target, job.known, factors(before)
    alpha, rslora, dtypes = target.alpha, target.rslora, _dtypes(target)
    if target.r != r:  # the scale stays, and zeros fill the rank up
        alpha, rslora = alpha_for(target.scale, r, rslora=False), False
    try:
        whole = squared_norm(old) if known is None else float(np.square(known.s).sum())
    except NonFiniteError as error:
        raise named(job, error) from error
    try:
        if r < job.module.r:
            known = known or Decomposition(*core(old, update_factors, careful=True)[:2])
            new, lost = truncate(
                old,
                known.s,
                known.left,
                r // target.groups,
                dtypes=dtypes,
                alpha=alpha,
                rslora=rslora,
                factors=update_factors,
            )
        else:
            new, lost = rescale(old, dtypes=dtypes, alpha=alpha, rslora=rslora)
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.adapter.path}: {job.module.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    after = refactored(before, _filled(new, target))
    lost += bias_error(before, after)
    unchanged = new.b is old.b and new.a is old.a
    return Change(target.name, after, row_of(job, job.target, known, whole, lost, unchanged))


def finished(job: RewriteJob, new: LowRank, whole: float, lost: float) -> Change:
    """Return a module that was made of a sum of full rank, at its target."""
    assert job.target is not None
    target = job.target.module
    row = row_of(job, job.target, job.known, whole, lost, unchanged=False)
    return Change(target.name, _filled(new, target), row)


def read_sum(job: RewriteJob) -> list[Update]:
    """Read the updates of a sum; `NonFiniteError` names the tensor that holds NaN or Inf."""
    assert isinstance(job.origin, Sum)
    updates = job.origin.updates(job.module)
    if not all(sound(update) for update in updates):
        raise named(job, "")
    return updates


def _dtypes(target: Module) -> tuple[str, str]:
    b, a = (str(DTYPES[target.parts[role].spec.dtype].torch) for role in ("b", "a"))
    return b, a


def _filled(update: LowRank, target: Module) -> LowRank:
    """Fill up to the target's rank with zeros, under its alpha."""
    more = target.rank - update.rank
    if not more:
        return update
    b, a = padded(update.b, more), padded(update.a.swapaxes(-1, -2), more).swapaxes(-1, -2)
    return LowRank(a, b, target.alpha, target.rslora, update.groups)
