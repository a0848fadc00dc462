"""A source without the directions of another adapter, and what that takes from it."""

import math
from dataclasses import replace

import numpy as np

from lora_tools.errors import FormatError, NonFiniteError, UnsupportedError, some
from lora_tools.executors import Executor
from lora_tools.files.address import Address
from lora_tools.linalg.exact import exact
from lora_tools.linalg.metrics import squared_distance, squared_norm
from lora_tools.linalg.projection import Projection
from lora_tools.report import Projected
from lora_tools.rewrite.aligned import aligned
from lora_tools.rewrite.jobs import RewriteJob
from lora_tools.rewrite.source import Made, Source, Sum, Term
from lora_tools.rewrite.tasks import named, read_sum
from lora_tools.update import factors


def projected(source: Source, other: Source, projection: Projection) -> Source:
    """Return a source whose updates do not read what those of another do; reads no tensor.

    Both are in one format. Modules that the other lacks stay as they are. Raises `FormatError`
    where the two have no module in common, or one of another shape, and `UnsupportedError` for
    DoRA and for biases of B.
    """
    theirs = {name: module for module in other.manifest.modules for name in [module.name]}
    names = {new: old for old, new in aligned(other, [*source]).names.items()}
    origins: dict[str, Made] = dict(source.origins)
    shared = [module for module in source.manifest.modules if module.name in names]
    if not shared:
        raise FormatError(f"{other.path} and {source.path} have no module in common").hint(
            f"Modules: {some(other)}; {some(source)}."
        )
    for module in shared:
        twin = theirs[names[module.name]]
        if (module.out, module.inp, module.stack) != (twin.out, twin.inp, twin.stack):
            raise FormatError(
                f"{module.name} is {list(module.shape)} in {source.path} and {list(twin.shape)} in"
                f" {other.path}"
            ).hint("Are they adapters of the same base model?")
        for path, each in ((source.path, module), (other.path, twin)):
            if {"magnitude", "columns", "bias"} & {*each.parts}:
                raise UnsupportedError(
                    f"{path}: {each.name}: DoRA or a bias of B, which no projection is known for"
                ).hint("Leave them out first: lora-tools convert --drop DoRA --drop bias.")
        terms = (Term(source, module, 1.0, 1), Term(other, twin, 1.0, 2))
        origins[module.name] = Sum(terms, projection)
    address = Address(projected, (source.address, other.address, projection))
    return replace(source, origins=origins, address=address)


def cost(source: Source, other: Source, executor: Executor) -> Projected:
    """Return what a projection takes from each module of its source. Reads every factor."""
    todo = [
        RewriteJob(source, module, "cpu")
        for module in source.manifest.modules
        if isinstance(source.origins[module.name], Sum)
    ]
    found = executor.map(_cost, todo)
    norms = {job.module.name: norm for job, norm in zip(todo, found, strict=True)}
    return Projected(str(other.path), norms)


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def _cost(job: RewriteJob) -> tuple[float, float]:
    """Return the norm of an update, and that of what the projection takes from it."""
    origin = job.origin
    assert isinstance(origin, Sum)
    updates = read_sum(job)
    try:
        before, after = factors(updates[0]), factors(origin.total(updates, job.module))
        return math.sqrt(squared_norm(before)), math.sqrt(max(squared_distance(before, after), 0.0))
    except NonFiniteError as error:
        raise named(job, error) from error
