"""Inspect: what an adapter is, from its header and configuration alone."""

from dataclasses import dataclass
from typing import Any

from lora_tools.adapter import Adapter

SCHEMA = "lora-tools/inspect/1"


@dataclass(frozen=True, slots=True)
class Inspection:
    """A description of an adapter, as plain data."""

    adapter: Adapter

    def to_dict(self) -> dict[str, Any]:
        """Return the description in the schema that `docs/report.md` describes."""
        manifest = self.adapter.manifest
        return {
            "schema": SCHEMA,
            "source": str(self.adapter.path),
            "format": manifest.format,
            "base_model": manifest.base_model,
            "modules": [
                {
                    "module": module.name,
                    "rank": module.r,
                    "alpha": module.alpha,
                    "scale": module.scale,
                    "shape": list(module.shape),
                    "dtype": module.parts["b"].spec.dtype,
                    "params": module.params,
                }
                for module in manifest.modules
            ],
            "extras": [
                {
                    "tensor": extra.key,
                    "kind": extra.kind,
                    "dtype": extra.spec.dtype,
                    "shape": list(extra.spec.shape),
                }
                for extra in manifest.extras
            ],
            "totals": {
                "modules": len(manifest.modules),
                "params": self.adapter.params,
                "bytes": self.adapter.nbytes,
            },
            "notes": list(manifest.notes),
        }


def inspect(adapter: Adapter) -> Inspection:
    """Describe an adapter. Reads no tensor and needs no torch."""
    return Inspection(adapter)
