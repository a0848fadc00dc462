"""An adapter beside its base: where each module belongs, and how large it is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.engine import Engine
from lora_tools.homes import Home, Homes, homes
from lora_tools.model import Model
from lora_tools.storage.dtypes import FLOATS


class Weight(NamedTuple):
    """The base weight of a module and its Frobenius norm; None if its numbers are packed."""

    key: str
    norm: float | None

    def to_dict(self, update: float | None) -> dict[str, Any]:
        """Return it as plain data, beside the norm of the update."""
        ratio = update / self.norm if self.norm and update is not None else None
        return {"weight": self.key, "norm": self.norm, "ratio": ratio}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an adapter is to a base model."""

    adapter: Adapter
    base: Model
    homes: Homes
    norms: Mapping[str, float | None]
    """By weight."""

    def module(self, name: str) -> Weight | None:
        """Return the weight of a module, if it has one of its shape."""
        home = self.homes.found.get(name)
        return Weight(home.key, self.norms[home.key]) if home else None

    def to_dict(self) -> dict[str, Any]:
        """Return what does not fit, as plain data."""
        return {
            "path": str(self.base.path),
            "missing": list(self.homes.missing),
            "misshapen": [
                {
                    "module": name,
                    "weight": home.key,
                    "shape": list(home.spec.shape),
                    "expected": list(self.adapter.module(name).shape),
                }
                for name, home in self.homes.misshapen.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Weighing:
    """A base weight to find the norm of."""

    base: Model
    home: Home


def compare(adapter: Adapter, base: Model, engine: Engine) -> Comparison:
    """Find the base weight of every module and its norm. Reads each of them once."""
    found = homes(adapter.manifest.modules, base.tensors.specs)
    places = list({home.key: home for home in found.found.values()}.values())
    norms = engine.map(weigh, [Weighing(base, home) for home in places])
    keys = [home.key for home in places]
    return Comparison(adapter, base, found, dict(zip(keys, norms, strict=True)))


def weigh(job: Weighing) -> float | None:
    """Return the Frobenius norm of a base weight; None where a number is no weight by itself."""
    if job.home.spec.dtype not in FLOATS:
        return None
    from lora_tools.linalg.metrics import norm  # imports numpy

    return norm(job.base.tensors.arrays[job.home.key])
