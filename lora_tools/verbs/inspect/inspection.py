"""An inspection: everything that was found out about an adapter, as plain data."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site
from lora_tools.model import Model
from lora_tools.verbs.inspect.groups import groups
from lora_tools.verbs.inspect.origin import scale_model, task, trained_by, variants

if TYPE_CHECKING:
    from lora_tools.runtimes import Judgement
    from lora_tools.verbs.inspect.comparison import BaseComparison
    from lora_tools.verbs.inspect.spectra import Spectra

SCHEMA = "lora-tools/inspect/2"

COMPARED = ("prefixes", "unmatched", "misshapen")
OF_WEIGHT = ("base_tensor", "base_norm", "relative_norm")
"""What is null without a base, of the adapter and of a module."""

KINDS: Mapping[type[Site], str] = {
    Linear: "linear",
    Embedding: "embedding",
    Convolution: "convolution",
    Experts: "experts",
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A description of an adapter."""

    adapter: Adapter
    base: Model | None = None
    """The base model, if it was given."""
    spectra: "Spectra | None" = None
    comparison: "BaseComparison | None" = None
    judgements: "tuple[Judgement, ...]" = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the description as `report.schemas` describes it."""
        adapter, manifest, spectra = self.adapter, self.adapter.manifest, self.spectra
        modules = [self._module(module) for module in manifest.modules]
        return {
            "schema": SCHEMA,
            "source": str(adapter.path),
            "format": manifest.format,
            "variants": variants(manifest),
            "base_model": manifest.base_model,
            "task": task(manifest),
            "scale_model": scale_model(manifest),
            "trained_by": [list(pair) for pair in trained_by(manifest)],
            "totals": self._totals(),
            "groups": [group.to_dict() for group in groups(modules)],
            "modules": modules,
            "tensors": [
                {
                    "tensor": extra.key,
                    "kind": extra.kind,
                    "dtype": extra.spec.dtype,
                    "shape": list(extra.spec.shape),
                    "bytes": extra.spec.nbytes,
                }
                for extra in manifest.extras
            ],
            "problems": self.problems,
            "notes": [*manifest.notes, *(spectra.notes if spectra else ()), *self._swaps()],
            "ranks": [uniform._asdict() for uniform in spectra.uniform_ranks] if spectra else None,
            "suggestion": spectra.suggestion.to_dict() if spectra and spectra.suggestion else None,
            "base": str(self.base.path) if self.base else None,
            **(self.comparison.to_dict() if self.comparison else dict.fromkeys(COMPARED)),
            "verdicts": [judgement.to_dict() for judgement in self.judgements],
        }

    @property
    def problems(self) -> list[str]:
        """What is wrong with the adapter, a sentence each."""
        faults = self.spectra.faults if self.spectra else ()
        return [*self.adapter.manifest.problems, *faults]

    def _swaps(self) -> list[str]:
        """Return what changes before the adapter's names in the base, a sentence each."""
        swaps = self.comparison.swaps if self.comparison else ()
        return [swap.sentence("the adapter", "the base") for swap in swaps]

    def _totals(self) -> dict[str, Any]:
        modules, base = self.adapter.manifest.modules, self.base
        return {
            "modules": len(modules),
            "params": self.adapter.params,
            "bytes": self.adapter.nbytes,
            "dtypes": dict(Counter(part.spec.dtype for m in modules for part in m.parts.values())),
            "norm": self.spectra.norm if self.spectra else None,
            "base_params": base.params if base else None,
            "base_bytes": base.nbytes if base else None,
        }

    def _module(self, module: Module) -> dict[str, Any]:
        figures = self.spectra.figures[module.name] if self.spectra else None
        compared = self.comparison.weights.get(module.name) if self.comparison else None
        norm = figures.norm if figures else None
        return {
            "module": module.name,
            "kind": KINDS[type(module.site)],
            "rank": module.r,
            "alpha": module.alpha,
            "scale": module.scale,
            "shape": list(module.shape),
            "dtype": module.dtype,
            "params": module.params,
            "bytes": module.nbytes,
            "parts": list(module.parts),
            "spectrum": figures.to_dict() if figures else None,
            **(compared.to_dict(norm) if compared else dict.fromkeys(OF_WEIGHT)),
        }
