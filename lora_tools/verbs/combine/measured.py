"""What the sums of a source are: their ranks, their spectra, and how their summands lie."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.executors import Executor
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import factors_of
from lora_tools.linalg.spectrum import NOISE, numerical_rank
from lora_tools.linalg.sums import Contributions, contributions
from lora_tools.linalg.tiles import inner_products
from lora_tools.rewrite import Source
from lora_tools.rewrite.dense import matrices, sketched
from lora_tools.rewrite.jobs import Decomposition, RewriteJob
from lora_tools.rewrite.source import Sum
from lora_tools.rewrite.survey import jobs
from lora_tools.rewrite.tasks import decomposed, named, read_sum
from lora_tools.update import DoRA, Update, factors

MOST_KEPT = 256_000_000
"""Bytes of decompositions that are kept whole for the second pass, so as not to be found twice."""


class Measured(NamedTuple):
    """One module of a sum."""

    rank: int
    """The rank of its factors side by side, without those that cancel each other."""
    alpha: float | None
    rslora: bool
    least: int
    """The rank that the sum has."""
    found: Decomposition
    summands: Contributions

    @property
    def norm(self) -> float:
        """The norm of the sum."""
        return math.sqrt(self.found.tail[0])


@dataclass(frozen=True, slots=True)
class Sums:
    """A source of sums at the ranks that they have, and what is known of each module."""

    source: Source
    modules: Mapping[str, Measured]

    @property
    def found(self) -> dict[str, Decomposition]:
        """The decomposition of each module."""
        return {name: each.found for name, each in self.modules.items()}


def measured(
    source: Source, executor: Executor, columns: int | None, *, every: bool = False
) -> Sums:
    """Read every module once, and return the source at the ranks of its sums.

    ``columns`` is the rank up to which decompositions will be used, where that is known, and
    ``every`` whether at any rank below it. They are kept up to it, and all of them only if they are
    small: an r x r matrix for each module. Those of full rank are sketched up to it.
    """
    whole = sum(8 * module.stack * module.rank**2 for module in source.manifest.modules)
    most = columns if columns is not None or whole <= MOST_KEPT else 0
    task = partial(measure, most=most, columns=columns, every=every)
    found = executor.map(task, jobs(source, "cpu"))
    results = dict(zip(source, found, strict=True))
    modules = tuple(_at(module, results[module.name]) for module in source.manifest.modules)
    least: dict[str, int] = {}
    for module in modules:  # those of one owner have one rank
        r = results[module.name].least * module.groups
        least[module.owner] = max(least.get(module.owner, 0), r)
    return Sums(
        replace(
            source,
            manifest=replace(source.manifest, modules=modules),
            ranks={m.name: least[m.owner] for m in modules if least[m.owner] < m.r},
        ),
        results,
    )


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def measure(
    job: RewriteJob, most: int | None = None, *, columns: int | None = None, every: bool = False
) -> Measured:
    """Return what one sum is; `NonFiniteError` names the tensor that holds NaN or Inf."""
    origin = job.origin
    assert isinstance(origin, Sum)
    updates = read_sum(job)
    if origin.is_dense:
        return _densely(job, origin, updates, columns, every=every)
    try:
        summands = contributions([factors(update) for update in updates], origin.weights)
        update = origin.total(updates, job.module)
        low = factors(update)
        found = decomposed(job, update, factors_of(low))
    except NonFiniteError as error:
        raise named(job, error) from error
    least = low.rank
    if origin.is_moved:
        least = 1 if found.is_zero else numerical_rank(found.s)
    kept = found.left[..., : least if most is None else min(most, least)]
    slim = Decomposition(found.s, kept.copy())
    return Measured(low.rank, low.alpha, low.rslora, least, slim, summands)


def _densely(
    job: RewriteJob, origin: Sum, updates: list[Update], most: int | None, *, every: bool
) -> Measured:
    """Return what a sum of full rank is: its spectrum up to ``most``, or all of it."""
    module, side = job.module, min(job.module.out, job.module.inp)
    rank = side if most is None else min(max(most, 1), side)
    matrices_of = matrices(job, updates)
    found = sketched(job, matrices_of, rank, every=every or most is None)
    summands = contributions([factors(update) for update in updates], origin.weights)
    if any(isinstance(update, DoRA) for update in updates):
        members = origin.tiled(updates, module)
        nowhere = np.full(summands.columns.shape, np.nan)
        inner = sum(inner_products(member) for member in members)
        summands = Contributions(np.asarray(inner), nowhere, nowhere)
    least = side
    if found.rest <= NOISE**2 * found.tail[0] and not found.is_zero:
        least = numerical_rank(found.s)
    if found.is_zero:
        least = 1
    return Measured(side, float(side * module.groups), False, least, found, summands)


def _at(module: Module, found: Measured) -> Module:
    sized = module.resized(found.rank * module.groups)
    return replace(sized, alpha=found.alpha, rslora=found.rslora)
