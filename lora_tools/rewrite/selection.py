"""What a selection leaves of a source that is to be rewritten."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_tools.errors import LoraToolsError, UnsupportedError, some
from lora_tools.executors import Executor, Serial
from lora_tools.files.address import Address
from lora_tools.formats.manifest import Module
from lora_tools.linalg.exact import exact
from lora_tools.linalg.metrics import squared_norm
from lora_tools.rewrite.dense import matrices
from lora_tools.rewrite.jobs import RewriteJob
from lora_tools.rewrite.source import Made, Source, Sum, Term
from lora_tools.rewrite.tasks import named, read_sum
from lora_tools.scaling import alpha_for
from lora_tools.selection import Selection
from lora_tools.update import factors


def selected(source: Source, selection: Selection, executor: Executor | None = None) -> Source:
    """Return what a selection leaves of a source.

    Reads the modules that go, for their norms. Raises `PolicyError` for patterns that match
    nothing, and `UnsupportedError` if nothing is left, or for DoRA with a weight.
    """
    if selection == Selection():
        return source
    try:
        selection.check([source.manifest.modules])
    except LoraToolsError as error:
        raise error.located(source.path) from error
    result = _selected(source, selection)
    kept = {*result.origins}
    gone = [module for module in source.manifest.modules if module.name not in kept]
    norms = (executor or Serial()).map(norm, [RewriteJob(source, m, "cpu") for m in gone])
    removed = {m.name: each for m, each in zip(gone, norms, strict=True)}
    return replace(result, removed={**source.removed, **removed})


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def norm(job: RewriteJob) -> float:
    """Return the norm of one module's update; `NonFiniteError` names the tensor that has none."""
    try:
        if isinstance(job.origin, Sum) and job.origin.is_dense:
            return math.hypot(*(math.sqrt(m.squared) for m in matrices(job, read_sum(job))))
        return math.sqrt(squared_norm(factors(job.source.update(job.module))))
    except ArithmeticError as error:
        raise named(job, error) from error


def _selected(source: Source, selection: Selection) -> Source:
    manifest = source.manifest
    weights = selection.of(manifest.modules)
    modules = tuple(weigh(m, weights[m.name]) for m in manifest.modules if weights[m.name])
    if not modules:
        raise UnsupportedError(f"{source.path}: no module is left")
    origins: dict[str, Made] = {
        m.name: source.origins[m.name]
        if weights[m.name] == 1.0
        else Sum((Term(source, m, weights[m.name]),))
        for m in manifest.modules
        if weights[m.name]
    }
    _check(source, [m for m in manifest.modules if weights[m.name] not in (0.0, 1.0)])
    return replace(
        source,
        manifest=replace(
            manifest,
            modules=modules,
            extras=tuple(e for e in manifest.extras if selection.keeps(e)),
            changed=manifest.changed or len(modules) < len(manifest.modules),
        ),
        origins=origins,
        address=Address(_selected, (source.address, selection)),
    )


def weigh(module: Module, weight: float) -> Module:
    """Return how a module is described whose update is multiplied: its size goes to alpha."""
    if abs(weight) == 1.0:
        return module
    alpha = module.alpha
    if alpha is None:
        alpha = alpha_for(1.0, module.r, rslora=module.rslora)
    return replace(module, alpha=alpha * abs(weight))


def _check(source: Source, modules: Sequence[Module]) -> None:
    dora = [module.name for module in modules if module.is_dora]
    if dora:
        raise UnsupportedError(
            f"{source.path}: DoRA's updates have no weight, as the weights of the base are"
            f" normalised after they are added: {some(dora)}"
        ).hint("Leave the DoRA magnitudes out, with lora-tools convert --drop DoRA.")
