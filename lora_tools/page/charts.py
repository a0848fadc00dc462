"""What the page draws: modules as a grid, spectra and the shrink curve, as JSON for its scripts."""

import json
import math
from collections.abc import Mapping
from typing import Any

from lora_tools.grid import grid

Data = Mapping[str, Any]
SPECTRUM = ("norm", "sigma_max", "stable_rank", "effective_rank", "energy_ranks", "sigma")


def charts(document: Data) -> str:
    """Return the data of the charts as JSON that is safe inside a script element."""
    modules = document["modules"]
    found = grid([module["module"] for module in modules])
    suggestion = document.get("suggestion") or {}
    data = {
        "prefix": found.prefix,
        "rows": found.rows,
        "labels": found.labels,
        "columns": found.columns,
        "modules": [
            _module(module) | {"row": place.row, "column": place.column}
            for module, place in zip(modules, found.places, strict=True)
        ],
        "ranks": document.get("ranks") or [],
        "suggested": suggestion.get("rank_after"),
    }
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _module(module: Data) -> dict[str, Any]:
    """Return what is drawn of a module."""
    spectrum = module.get("spectrum") or {}
    return {
        "name": module["module"],
        "rank": module["rank"],
        "scale": module["scale"],
        "params": module["params"],
        "state": spectrum.get("state"),
        "relative_norm": module["relative_norm"],
        **{key: spectrum.get(key) for key in SPECTRUM},
    }


def _plain(value: Any) -> Any:
    """Return data with floats of five digits, and null for those that are not finite."""
    match value:
        case float():
            return float(f"{value:.5g}") if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
