"""The rows of a rewrite: what each module was, what it is written as, and what that cost."""

import math

from lora_tools.formats.manifest import Module
from lora_tools.linalg.spectrum import NOISE
from lora_tools.report import Row
from lora_tools.rewrite.jobs import Decomposition, RewriteJob, Target
from lora_tools.rewrite.source import Sum


def row_of(
    job: RewriteJob,
    target: Target,
    known: Decomposition | None,
    whole: float,
    lost: float,
    unchanged: bool,
) -> Row:
    """Return the row of a module that is written at its target."""
    module, (r, written) = job.module, target
    k = r // module.groups
    left = None if known is None else known.s[..., k:]
    discarded = 0.0 if known is None else float(known.tail[k])
    most = None if known is None or known.reach is None else float(known.reach[k])
    return Row(
        module=written.name,
        key_prefix=written.key_prefix,
        shape=written.shape,
        rank_before=module.r,
        rank_after=r,
        rank_stored=written.r,
        scale_before=module.scale,
        scale=written.scale,
        alpha=written.alpha,
        dtype=written.dtype,
        norm=math.sqrt(whole),
        energy=1 - discarded / whole if whole else 1.0,
        error=math.sqrt(lost / whole) if whole else 0.0,
        optimal_error=math.sqrt(discarded / whole) if whole else 0.0,
        sigma_max=None if known is None else float(known.s.max()),
        sigma_discarded=0.0 if left is None or not left.size else float(left.max()),
        outcome=_outcome(job, target, whole, discarded, unchanged),
        optimal_error_lower_bound=(
            math.sqrt(max(whole - most, 0.0) / whole) if most is not None and whole else None
        ),
    )


def removed_row(module: Module, known: Decomposition) -> Row:
    """Return the row of a module for which a policy has chosen rank 0."""
    norm = math.sqrt(known.tail[0])
    lost = 1.0 if norm else 0.0
    return Row(
        module=module.name,
        key_prefix=module.key_prefix,
        shape=module.shape,
        rank_before=module.r,
        rank_after=0,
        rank_stored=0,
        scale_before=module.scale,
        scale=module.scale,
        alpha=module.alpha,
        dtype=module.dtype,
        norm=norm,
        energy=1 - lost,
        error=lost,
        optimal_error=lost,
        sigma_max=float(known.s.max()),
        sigma_discarded=float(known.s.max()),
        outcome="removed",
    )


def _outcome(job: RewriteJob, target: Target, whole: float, lost: float, unchanged: bool) -> str:
    if not whole and job.known is not None:
        return "zero"
    if target.r < job.module.r:
        return "reduced" if job.known is None or lost <= NOISE**2 * whole else "shrunk"
    if not job.origin.is_pair:
        return "refactored"
    if isinstance(job.origin, Sum) and job.origin.is_moved:
        return "stacked"
    if not unchanged:
        return "rescaled"
    return "padded" if target.module.r > target.r else "kept"
