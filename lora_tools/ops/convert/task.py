"""The job of a conversion: one module's factors, under the alpha that the target gives it."""

import math
from dataclasses import dataclass, replace

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.errors import NonFiniteError
from lora_tools.formats.manifest import Module
from lora_tools.linalg.metrics import squared_norm
from lora_tools.linalg.rescale import bias_error, refactored, rescale
from lora_tools.linalg.tall import padded
from lora_tools.ops.convert.naming import Rows
from lora_tools.ops.convert.outcome import Change, Row
from lora_tools.scaling import alpha_for
from lora_tools.storage.dtypes import DTYPES
from lora_tools.update import Biased, DoRA, LowRank, Update, factors


@dataclass(frozen=True, slots=True)
class Job:
    """A module to write."""

    adapter: Adapter
    module: Module
    target: Module
    rows: Rows | None = None
    """Ranges of the rows of B that the target has; None: all."""


def rewrite(job: Job) -> Change:
    """Return a module's update as the target stores it, with what rounding cost."""
    module, target = job.module, job.target
    before = _kept(job.adapter.format.update(module, job.adapter.tensors.arrays), target)
    if job.rows is not None:
        before = _rows(factors(before), job.rows)
    old = factors(before)
    dtypes = (_torch(target, "b"), _torch(target, "a"))
    alpha, rslora = target.alpha, target.rslora
    if target.r != module.r:  # the scale stays, and zeros fill the rank up
        alpha, rslora = alpha_for(target.scale, module.r, rslora=False), False
    try:
        new, lost = rescale(old, dtypes=dtypes, alpha=alpha, rslora=rslora)
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.adapter.path}: {module.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    after = refactored(before, _filled(new, target))
    lost += bias_error(before, after)
    norm = math.sqrt(squared_norm(old))
    same = new.b is old.b and new.a is old.a
    outcome = "refactored" if not module.is_pair else "kept" if same else "rescaled"
    if target.r > module.r and outcome == "kept":
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
    )
    return Change(target.name, after, row)


def _kept(update: Update, target: Module) -> Update:
    """Return an update without the parts that the target does not have."""
    match update:
        case DoRA(direction=low) if not {"magnitude", "columns"} & target.parts.keys():
            return low
        case Biased(weight=low) if "bias" not in target.parts:
            return low
        case _:
            return update


def _rows(update: LowRank, rows: Rows) -> LowRank:
    """Return the update of some rows of the weight: their rows of B, and the same A."""
    pieces = [update.b[start:stop] for start, stop in rows]
    if len(pieces) == 1:
        return replace(update, b=pieces[0])
    if hasattr(pieces[0], "astype"):
        return replace(update, b=np.concatenate(pieces))
    import torch  # numpy lacks the type

    return replace(update, b=torch.cat(pieces))


def _filled(update: LowRank, target: Module) -> LowRank:
    more = target.rank - update.rank
    b, a = padded(update.b, more), padded(update.a.swapaxes(-1, -2), more).swapaxes(-1, -2)
    return LowRank(a, b, target.alpha, target.rslora, update.groups) if more else update


def _torch(module: Module, role: str) -> str:
    return str(DTYPES[module.parts["b" if role == "b" else "a"].spec.dtype].torch)
