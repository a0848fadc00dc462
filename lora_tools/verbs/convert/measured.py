"""The ranks of layers that are split or stacked: what their tensors say, not their shapes."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from lora_tools.errors import NonFiniteError
from lora_tools.executors import Executor
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact
from lora_tools.linalg.rank import numerical_rank
from lora_tools.linalg.svd import core
from lora_tools.update import factors
from lora_tools.verbs.convert.task import named
from lora_tools.verbs.convert.translated import Translated


def measured(of: Translated, executor: Executor) -> Translated:
    """Return a translated adapter at the ranks that its split and stacked updates have."""
    modules = of.manifest.modules
    open_ = [m for m in modules if of.origins[m.name].rows or of.origins[m.name].starts]
    found = dict(executor.map(_measure, [Measurement(of, module) for module in open_]))
    at_rank = tuple(
        replace(
            m.resized(found[m.name].rank), alpha=found[m.name].alpha, rslora=found[m.name].rslora
        )
        if m.name in found
        else m
        for m in modules
    )
    lower = {name: rank.least for name, rank in found.items() if rank.least < rank.rank}
    return replace(of, manifest=replace(of.manifest, modules=at_rank), ranks=lower)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A module whose rank its tensors decide."""

    of: Translated
    module: Module


class Rank(NamedTuple):
    """The rank of a module's factors, the alpha that goes with it, and the rank of its update."""

    rank: int
    alpha: float | None
    rslora: bool
    least: int


@exact()
def _measure(job: Measurement) -> tuple[str, Rank]:
    module = job.module
    update = factors(job.of.update(module))
    least = update.rank
    several = bool(job.of.origins[module.name].starts) and least > max(
        m.rank for m in job.of.origins[module.name].modules
    )
    if several or least > min(module.out, module.inp):
        try:
            least = numerical_rank(core(update, careful=True).s)
        except NonFiniteError as error:
            raise named(job.of, module, error) from error
    return module.name, Rank(update.rank, update.alpha, update.rslora, least)
