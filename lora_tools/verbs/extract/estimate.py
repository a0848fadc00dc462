"""What an extraction would write and about how long it would take, before it begins."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_tools.verbs.extract.output import describe, plan_file
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.rows import ExtractRow

PASSES, WIDTH = 11, 24
"""What a matrix takes as a rule: passes over it, and vectors at a time."""


@dataclass(frozen=True, slots=True)
class ModuleEstimate:
    """One tensor and what would become of it, if it changed."""

    name: str
    shape: tuple[int, ...]
    what: str
    rank: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """All of them."""

    modules: tuple[ModuleEstimate, ...]
    params: int
    nbytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        return {"schema": "lora-tools/extraction-plan/1", **asdict(self)}


def estimate(plan: ExtractPlan, rank: int) -> Estimate:
    """Return what would be written if every tensor changed. Computes for a few milliseconds."""
    modules = [_module(item, rank) for item in plan.items]
    rows = [_row(item, module) for item, module in zip(plan.items, modules, strict=True)]
    manifest = describe(plan, plan.items, rows)
    specs = manifest.specs.values()
    params = sum(spec.numel for spec in specs)
    return Estimate(tuple(modules), params, plan_file(manifest).size, _seconds(plan))


def _module(item: Item, rank: int) -> ModuleEstimate:
    place = item.pair.place
    if item.treatment == "lora" and place:
        shape, own = item.pair.spec.shape, min(rank, place.rows, place.columns)
        return ModuleEstimate(item.name, shape, "extracted", own)
    what = "stored whole" if item.treatment == "full" else f"left out ({item.reason})"
    return ModuleEstimate(item.name, item.pair.spec.shape, what, 0)


def _row(item: Item, module: ModuleEstimate) -> ExtractRow:
    outcome = "extracted" if module.rank else "full" if item.treatment == "full" else "left out"
    return ExtractRow(
        item.name, module.shape, outcome, 0, rank=module.rank, rank_stored=module.rank
    )


def _seconds(plan: ExtractPlan) -> float:
    """Estimate from a product that is timed now, and a gigabyte a second for reading."""
    rng = np.random.default_rng(0)
    d = rng.standard_normal((512, 4096), np.float32)
    x = rng.standard_normal((WIDTH, 4096), np.float32)
    (x @ d.T) @ d
    began = time.perf_counter()
    (x @ d.T) @ d
    rate = d.size / max(time.perf_counter() - began, 1e-6)
    elements = sum(item.pair.spec.numel for item in plan.items if item.treatment == "lora")
    return plan.nbytes / 1e9 + PASSES * elements / rate
