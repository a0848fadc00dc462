"""What an extraction would write and about how long it would take, before it begins."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_tools.verbs.extract.output import describe, plan_file
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.rows import ExtractRow

SCHEMA = "lora-tools/extraction-plan/2"

PASSES, WIDTH = 11, 24
"""What a matrix takes as a rule: passes over it, and vectors at a time."""


@dataclass(frozen=True, slots=True)
class ModuleEstimate:
    """One tensor and what would become of it, if it changed."""

    module: str
    shape: tuple[int, ...]
    outcome: str
    """``extracted``, ``carried`` or ``left out``."""
    reason: str = ""
    rank_after: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """All of them."""

    modules: tuple[ModuleEstimate, ...]
    params: int
    nbytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain data, as `report.schemas` describes it."""
        return {
            "schema": SCHEMA,
            "command": "extract",
            "totals": {
                "modules": sum(module.outcome == "extracted" for module in self.modules),
                "params_after": self.params,
                "bytes_after": self.nbytes,
                "estimated_seconds": self.seconds,
            },
            "modules": [asdict(module) for module in self.modules],
        }


def estimate(plan: ExtractPlan, rank: int) -> Estimate:
    """Return what would be written if every tensor changed. Computes for a few milliseconds."""
    modules = [_module(item, rank) for item in plan.items]
    rows = [
        ExtractRow(each.module, each.shape, each.outcome, 0, rank_stored=each.rank_after)
        for each in modules
    ]
    manifest = describe(plan, plan.items, rows)
    specs = manifest.specs.values()
    params = sum(spec.numel for spec in specs)
    return Estimate(tuple(modules), params, plan_file(manifest).size, _seconds(plan))


def _module(item: Item, rank: int) -> ModuleEstimate:
    place, sizes = item.pair.place, item.pair.spec.shape
    if item.treatment == "lora" and place:
        own = min(rank, place.rows, place.columns)
        return ModuleEstimate(item.name, sizes, "extracted", rank_after=own)
    if item.treatment == "full":
        return ModuleEstimate(item.name, sizes, "carried")
    return ModuleEstimate(item.name, sizes, "left out", item.reason)


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
