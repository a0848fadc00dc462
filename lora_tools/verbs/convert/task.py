"""The job of a conversion: one module's factors, under the alpha that the target gives it."""

import math
from dataclasses import dataclass

from lora_tools.errors import NonFiniteError
from lora_tools.files.dtypes import DTYPES
from lora_tools.formats.finite import broken, damaged, sound
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact
from lora_tools.linalg.metrics import squared_norm
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.linalg.svd import core
from lora_tools.linalg.tall import padded
from lora_tools.linalg.truncate import truncate
from lora_tools.scaling import alpha_for
from lora_tools.update import LowRank, factors
from lora_tools.verbs.convert.outcome import Change, Row
from lora_tools.verbs.convert.translated import Translated


@dataclass(frozen=True, slots=True)
class Job:
    """A module to write."""

    of: Translated
    module: Module
    target: Module
    r: int
    """The rank that it keeps; the target's may be larger, filled up with zeros."""


@exact()
def rewrite(job: Job) -> Change:
    """Return a module's update as the target stores it, with what rounding cost."""
    module, target = job.module, job.target
    before = job.of.update(module)
    old = factors(before)
    if not sound(before):
        raise named(job.of, module, "")
    try:
        norm = math.sqrt(squared_norm(old))
    except NonFiniteError as error:
        raise named(job.of, module, error) from error
    dtypes = (_torch(target, "b"), _torch(target, "a"))
    alpha, rslora = target.alpha, target.rslora
    if target.r != job.r:  # the scale stays, and zeros fill the rank up
        alpha, rslora = alpha_for(target.scale, job.r, rslora=False), False
    try:
        if job.r < module.r:
            found = core(old, careful=True)
            new, lost = truncate(
                old, found.s, found.left, job.r, dtypes=dtypes, alpha=alpha, rslora=rslora
            )
        else:
            new, lost = rescale(old, dtypes=dtypes, alpha=alpha, rslora=rslora)
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.of.path}: {module.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    after = refactored(before, _filled(new, target))
    lost += bias_error(before, after)
    same = new.b is old.b and new.a is old.a
    made = not job.of.origins[module.name].is_pair
    outcome = "refactored" if made else "kept" if same else "rescaled"
    if job.r < module.r:
        outcome = "reduced"
    elif target.r > module.r and outcome == "kept":
        outcome = "padded"
    row = Row(
        target.name,
        target.stem,
        target.shape,
        module.r,
        target.r,
        module.scale,
        target.scale,
        norm,
        math.sqrt(lost) / norm if norm else 0.0,
        outcome,
        rank_kept=job.r,
    )
    return Change(target.name, after, row)


def named(of: Translated, module: Module, why: object) -> NonFiniteError:
    """Return the error that names what a module is made of and holds NaN or Inf, or says ``why``.

    A module may be made of several, or of rows of one: those are what the file has, and are read
    once more.
    """
    olds = of.origins[module.name].modules
    keys = [key for old in olds for key in broken(old, of.source.update(old))]
    if keys:
        return damaged([f"{of.path}: {' and '.join(keys)}"])
    return NonFiniteError(f"{of.path}: {module.name}: {why}")


def _filled(update: LowRank, target: Module) -> LowRank:
    more = target.rank - update.rank
    b, a = padded(update.b, more), padded(update.a.swapaxes(-1, -2), more).swapaxes(-1, -2)
    return LowRank(a, b, target.alpha, target.rslora, update.groups) if more else update


def _torch(module: Module, role: str) -> str:
    return str(DTYPES[module.parts["b" if role == "b" else "a"].spec.dtype].torch)
