"""Sums of full rank: formed a module at a time, decomposed by a certified sketch, and split."""

from dataclasses import replace

import numpy as np

from lora_tools.errors import ConvergenceError, NonFiniteError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.krylov import Leading, Precision, leading
from lora_tools.linalg.operator import Operator, operator
from lora_tools.linalg.split import split
from lora_tools.linalg.stored import KINDS
from lora_tools.linalg.tiles import formed
from lora_tools.report import Change
from lora_tools.rewrite.jobs import Decomposition, RewriteJob
from lora_tools.rewrite.source import Sum
from lora_tools.rewrite.tasks import finished, named, read_sum
from lora_tools.scaling import alpha_for
from lora_tools.update import Array, LowRank, Update

CHANCE = 1e-6
"""The probability that any certificate of a combination fails."""


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def matrices(job: RewriteJob, updates: list[Update]) -> list[Operator]:
    """Form a sum of full rank, a matrix for each member of its stack.

    Memory holds the matrix, in float32 if it is large, and the base's weight for DoRA. Raises
    `NonFiniteError` where its numbers exceed float64.
    """
    origin, module = job.origin, job.module
    assert isinstance(origin, Sum)
    found: list[Operator] = []
    for member in origin.tiled(updates, module):
        whole = formed(origin.tiles(member, module), member[0].shape)
        if not np.isfinite(whole.squared):
            raise named(job, "its numbers, or their products, exceed float64")
        found.append(operator(whole.array, whole.squared))
    return found


def sketched(job: RewriteJob, found: list[Operator], rank: int, *, every: bool) -> Decomposition:
    """Return the ``rank`` largest singular values of each matrix, the next, and the certificate.

    With ``every`` it is as tight at each rank as at the largest.
    """
    rank = min(rank + 1, *(min(matrix.shape) for matrix in found))
    precision = Precision(chance=CHANCE / sum(m.stack for m in job.source.manifest.modules))
    if not any(matrix.squared for matrix in found):
        return Decomposition(np.zeros((len(found), 1)), np.zeros((len(found), 1, 0)))
    leaders = [_leading(job, m, rank, precision, n, every=every) for n, m in enumerate(found)]
    s = np.sqrt(np.stack([leader.squares for leader in leaders]))
    whole = sum(matrix.squared for matrix in found)
    rest = max(whole - float(np.square(s).sum()), 0.0)
    certain = all(leader.method == "gram" for leader in leaders)
    bound = None if certain else np.sum([leader.reach for leader in leaders], axis=0)
    kept = () if every else tuple(leaders)
    return Decomposition(s, np.zeros((len(found), 1, 0)), rest, bound, kept)


@exact()
def rewrite(job: RewriteJob) -> Change:
    """Return a sum of full rank at the rank of its target, with what that cost."""
    assert job.target is not None
    updates = read_sum(job)
    found = matrices(job, updates)
    (r, target), groups = job.target, job.module.groups
    rank, code = r // groups, target.parts["b"].spec.dtype
    known = job.known
    if known is None or not _leads(known, found, rank):
        known = sketched(job, found, rank, every=False)
    whole = sum(matrix.squared for matrix in found)
    if known.is_zero:
        shapes = (job.module.out, rank), (rank, job.module.inp)
        pair = [np.zeros((len(found), *shape), KINDS[code]) for shape in shapes]
        lost = 0.0
    else:
        try:
            parts = [
                split(matrix, leader, rank, code, target.scale)
                for matrix, leader in zip(found, known.leaders, strict=True)
            ]
        except NonFiniteError as error:
            raise NonFiniteError(f"{job.adapter.path}: {job.module.name}: {error}").hint(
                "Store a wider type: --dtype float32 or bfloat16."
            ) from error
        lost = sum(max(part.squared_error, 0.0) for part in parts)
        pair = [np.stack([part.left for part in parts]), np.stack([part.right for part in parts])]
    b, a = (_typed(bits if job.module.stack > 1 else bits[0], code) for bits in pair)
    low = LowRank(a, b, alpha_for(target.scale, r, rslora=False), groups=groups)
    if target.r == r:
        low = replace(low, alpha=target.alpha, rslora=target.rslora)
    return finished(replace(job, known=known), low, whole, lost)


def _leads(known: Decomposition, found: list[Operator], rank: int) -> bool:
    """Whether the vectors that were kept are those that would be found for a rank."""
    wanted = min(rank + 1, *(min(matrix.shape) for matrix in found))
    return len(known.leaders) == len(found) and known.s.shape[-1] == wanted


def _leading(
    job: RewriteJob, matrix: Operator, rank: int, precision: Precision, number: int, *, every: bool
) -> Leading:
    try:
        return leading(matrix, rank, precision, f"{job.module.name}#{number}", every=every)
    except np.linalg.LinAlgError as error:
        raise ConvergenceError(
            f"{job.module.name}: its decomposition did not converge ({error})"
        ).hint("Leave it out with --drop-modules, and please report it.") from error


def _typed(bits: np.ndarray, code: str) -> Array:
    """Return elements as a file has them in an array of their own type."""
    if code != "BF16":
        return bits
    import torch  # numpy has no bfloat16

    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
