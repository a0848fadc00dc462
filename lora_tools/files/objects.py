"""Configurations: JSON and YAML files that hold one object."""

import json
from pathlib import Path
from typing import Any

from lora_tools.errors import CheckpointError, LoraToolsError

YAML = (".yaml", ".yml")


def read_object(file: Path, error: type[LoraToolsError] = CheckpointError) -> dict[str, Any]:
    """Return the object that is the whole of a file: YAML by its ending, or else JSON.

    Raises an ``error`` if it is anything else.
    """
    kind = "YAML" if file.suffix in YAML else "JSON"
    try:
        found = _yaml(file) if kind == "YAML" else json.loads(file.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise error(f"{file}: not valid {kind} ({fault})") from fault
    if not isinstance(found, dict):
        raise error(f"{file}: not a {kind} object")
    return found


def _yaml(file: Path) -> Any:
    """Return plain values only: what would make objects is refused."""
    import yaml  # few folders have any

    try:
        return yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
