"""An adapter beside its base: where each module belongs, and how large it is there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.base import Base, Rows, Weight, base_of
from lora_tools.executors import Executor
from lora_tools.files.address import Address, reopened
from lora_tools.linalg.metrics import norm
from lora_tools.matching import Site, Swap, listed, match
from lora_tools.merging.tensor_plan import Patch
from lora_tools.model import Model
from lora_tools.names import collapse, template

BLOCK = 1 << 20
"""Elements that are read at a time."""


class WeightNorm(NamedTuple):
    """What a module is added to: the base weights, or rows of them, and their Frobenius norm."""

    keys: tuple[str, ...]
    norm: float | None
    """None if the numbers are packed, or not all finite."""

    def to_dict(self, update: float | None) -> dict[str, Any]:
        """Return it as plain data, beside the norm of the update."""
        alike: dict[str, list[str]] = {}
        for key in self.keys:
            alike.setdefault(template(key), []).append(key)
        ratio = update / self.norm if self.norm and update is not None else None
        tensor = " + ".join(collapse(keys) for keys in alike.values())
        return {"base_tensor": tensor, "base_norm": self.norm, "relative_norm": ratio}


@dataclass(frozen=True, slots=True)
class BaseComparison:
    """What an adapter is to a base model."""

    adapter: Adapter
    base: Base
    sites: Mapping[str, Site | None]
    weights: Mapping[str, WeightNorm] = field(default_factory=dict)
    """Of the modules that have a site of their shape."""
    swaps: tuple[Swap, ...] = ()
    """What changes before the adapter's names."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: another process finds the same sites, once, and no weights."""
        return reopened, (Address(_found, (self.adapter.address, self.base.model.address)),)

    def to_dict(self) -> dict[str, Any]:
        """Return what does not fit, as plain data."""
        specs = self.base.specs
        misfits = {name: site.misfit for name, site in self.sites.items() if site and site.misfit}
        return {
            "prefixes": listed({str(self.adapter.path): self.swaps}),
            "unmatched": [name for name, site in self.sites.items() if site is None],
            "misshapen": [
                {
                    "module": name,
                    "shape": list(self.adapter.module(name).shape),
                    "base_tensor": key,
                    "base_shape": list(specs[key].shape) if key in specs else None,
                }
                for name, key in misfits.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Weighing:
    """A module to find the norm of whose base weights."""

    comparison: BaseComparison
    module: str


def compare(adapter: Adapter, base: Model, executor: Executor) -> BaseComparison:
    """Find what each module is added to, and its norm. Reads those rows of the base once.

    Raises `FormatError` if the adapter fits in several places or square experts lie either way,
    and `UnsupportedError` for a quantised base.
    """
    found = _found(adapter, base)
    jobs = [Weighing(found, name) for name, site in found.sites.items() if site and site.pieces]
    weights = zip(jobs, executor.map(weigh, jobs), strict=True)
    return replace(found, weights={job.module: weight for job, weight in weights})


def _found(adapter: Adapter, base: Model) -> BaseComparison:
    """Find what each module is added to, from headers."""
    weights = base_of(base, "Compare with the weights that it was quantised from.")
    matching = match(adapter, weights.specs, base.config)
    found = matching.sites(weights.specs)
    return BaseComparison(adapter, weights, found, swaps=matching.swaps)


def weigh(job: Weighing) -> WeightNorm:
    """Return the base weights of a module and the norm of the rows that it changes."""
    adapter, base = job.comparison.adapter, job.comparison.base
    module, site = adapter.module(job.module), job.comparison.sites[job.module]
    patches = [Patch(adapter, module, piece, 1.0) for piece in (site.pieces if site else ())]
    keys = tuple(dict.fromkeys(patch.piece.key for patch in patches))
    if not all(base[key].is_numbers for key in keys):
        return WeightNorm(keys, None)
    whole = math.hypot(*(_norm(base[patch.piece.key], patch) for patch in patches))
    return WeightNorm(keys, whole if math.isfinite(whole) else None)


def _norm(weight: Weight, patch: Patch) -> float:
    """Return the norm of the rows that a patch changes; memory holds some of them at a time."""
    step = max(BLOCK // max(patch.width, 1), 1)
    with Rows(weight, patch.width) as rows:
        return math.hypot(
            *(
                norm(rows.wide(start, min(start + step, patch.stop)))
                for start in range(patch.piece.start, patch.stop, step)
            )
        )
