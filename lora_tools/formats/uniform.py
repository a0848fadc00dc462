"""One rank and one scale for all modules, for formats whose configuration has no others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lora_tools.formats.manifest import Module
from lora_tools.scaling import alpha_for


def at_one_rank(modules: Sequence[Module]) -> tuple[Module, ...]:
    """Return modules at the rank of the largest, of which zeros fill the smaller ones up."""
    rank = max(module.rank for module in modules)
    return tuple(_filled(module, rank) for module in modules)


def common_scale(modules: Sequence[Module]) -> float:
    """Return the scale that the most modules have, so that the fewest are rescaled."""
    return Counter(module.scale for module in modules).most_common(1)[0][0]


def common_alpha(modules: Sequence[Module]) -> float:
    """Return the alpha of the scale that the most modules of one rank have."""
    scale = common_scale(modules)
    own = (m.alpha for m in modules if m.scale == scale and m.alpha is not None and not m.rslora)
    return next(own, alpha_for(scale, modules[0].r, rslora=False))


def scaled(module: Module, scale: float) -> Module:
    """Return a module under this scale: with its own alpha, where that says it."""
    if module.alpha is not None and not module.rslora and module.scale == scale:
        return module
    return replace(module, alpha=alpha_for(scale, module.r, rslora=False), rslora=False)


def _filled(module: Module, rank: int) -> Module:
    if rank == module.rank:
        return module
    alpha = alpha_for(module.scale, rank, rslora=False)
    return replace(module.resized(rank), alpha=alpha, rslora=False)
