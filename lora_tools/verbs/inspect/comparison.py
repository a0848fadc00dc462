"""An adapter beside its base: where each module belongs, and how large it is there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.executors import Executor
from lora_tools.files.dtypes import FLOATS
from lora_tools.formats.manifest import Module
from lora_tools.linalg.metrics import norm
from lora_tools.matching import Site, Swap, match
from lora_tools.merging.entry import Patch
from lora_tools.model import Model
from lora_tools.names import collapse, template
from lora_tools.quantised import check


class Weight(NamedTuple):
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
        weight = " + ".join(collapse(keys) for keys in alike.values())
        return {"weight": weight, "norm": self.norm, "ratio": ratio}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an adapter is to a base model."""

    adapter: Adapter
    base: Model
    sites: Mapping[str, Site | None]
    weights: Mapping[str, Weight]
    """Of the modules that have a site of their shape."""
    swaps: tuple[Swap, ...] = ()
    """What changes before the adapter's names."""

    def to_dict(self) -> dict[str, Any]:
        """Return what does not fit, as plain data."""
        specs = self.base.tensors.specs
        misfits = {name: site.misfit for name, site in self.sites.items() if site and site.misfit}
        return {
            "path": str(self.base.path),
            "prefixes": [swap.to_dict() for swap in self.swaps],
            "missing": [name for name, site in self.sites.items() if site is None],
            "misshapen": [
                {
                    "module": name,
                    "weight": key,
                    "shape": list(specs[key].shape) if key in specs else None,
                    "expected": list(self.adapter.module(name).shape),
                }
                for name, key in misfits.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Weighing:
    """A module to find the norm of whose base weights."""

    base: Model
    adapter: Adapter
    module: Module
    site: Site


def compare(adapter: Adapter, base: Model, executor: Executor) -> Comparison:
    """Find what each module is added to, and its norm. Reads those rows of the base once.

    Raises `FormatError` if the adapter fits in several places or square experts lie either way,
    and `UnsupportedError` for a quantised base.
    """
    check(base, "Compare with the weights that it was quantised from.")
    specs = base.tensors.specs
    matching = match(adapter, specs, base.config)
    found = matching.sites(specs)
    jobs = [
        Weighing(base, adapter, module, site)
        for module in adapter.manifest.modules
        if (site := found[module.name]) and site.pieces
    ]
    weights = zip(jobs, executor.map(weigh, jobs), strict=True)
    named = {job.module.name: weight for job, weight in weights}
    return Comparison(adapter, base, found, named, matching.swaps)


def weigh(job: Weighing) -> Weight:
    """Return the base weights of a module and the norm of the rows that it changes."""
    tensors = job.base.tensors
    patches = [Patch(job.adapter, job.module, piece, 1.0) for piece in job.site.pieces]
    keys = tuple(dict.fromkeys(patch.piece.key for patch in patches))
    if any(tensors.specs[key].dtype not in FLOATS for key in keys):
        return Weight(keys, None)
    norms = [
        norm(
            tensors.span(patch.piece.key, patch.piece.start * patch.width, patch.stop * patch.width)
        )
        for patch in patches
    ]
    whole = math.hypot(*norms)
    return Weight(keys, whole if math.isfinite(whole) else None)
