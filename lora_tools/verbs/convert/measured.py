"""The ranks of layers that are split or stacked: what their tensors say, not their shapes."""

from dataclasses import replace
from typing import NamedTuple

from lora_tools.errors import NonFiniteError
from lora_tools.executors import Executor
from lora_tools.linalg.exact import exact
from lora_tools.linalg.spectrum import numerical_rank
from lora_tools.linalg.svd import core
from lora_tools.rewrite import Origin, Source
from lora_tools.rewrite.jobs import RewriteJob
from lora_tools.rewrite.source import Sum
from lora_tools.rewrite.survey import jobs
from lora_tools.rewrite.tasks import named
from lora_tools.update import factors


class Rank(NamedTuple):
    """The rank of a module's factors, the alpha that goes with it, and the rank of its update."""

    rank: int
    alpha: float | None
    rslora: bool
    least: int


def measured(source: Source, executor: Executor) -> Source:
    """Return a source at the ranks that its split and stacked updates have."""
    todo = [job for job in jobs(source, "cpu") if job.origin.is_moved]
    names = [job.module.name for job in todo]
    ranks = dict(zip(names, executor.map(measure, todo), strict=True))
    modules = tuple(
        replace(module.resized(found.rank), alpha=found.alpha, rslora=found.rslora)
        if (found := ranks.get(module.name))
        else module
        for module in source.manifest.modules
    )
    lower = {name: rank.least for name, rank in ranks.items() if rank.least < rank.rank}
    return replace(source, manifest=replace(source.manifest, modules=modules), ranks=lower)


@exact()
def measure(job: RewriteJob) -> Rank:
    """Return the rank of a module's factors and, where it may be lower, that of its update."""
    module, origin = job.module, job.origin
    assert not isinstance(origin, Sum), "a conversion is of one adapter"
    update = factors(origin.update(job.adapter, module))
    least = update.rank
    fused = isinstance(origin, Origin) and bool(origin.places)
    several = fused and least > max(m.rank for m in origin.modules)
    if several or least > min(module.out, module.inp):
        try:
            least = numerical_rank(core(update, careful=True).s)
        except NonFiniteError as error:
            raise named(job, error) from error
    return Rank(update.rank, update.alpha, update.rslora, least)
