"""Configurations: JSON and YAML files that hold one object."""

import json
from pathlib import Path
from typing import Any

from lora_tools.errors import CheckpointError, LoraToolsError
from lora_tools.storage.inputs import read_input

YAML = (".yaml", ".yml")
MAX_YAML = 1_000_000
"""The largest YAML file that is read, in bytes: its parser takes seconds for each megabyte."""


def read_object(file: Path, error: type[LoraToolsError] = CheckpointError) -> dict[str, Any]:
    """Return the object that is the whole of a file: YAML by its ending, or else JSON.

    Raises an ``error`` if it is anything else.
    """
    kind = "YAML" if file.suffix in YAML else "JSON"
    try:
        found = _yaml(file) if kind == "YAML" else json.loads(read_input(file))
    except CheckpointError:
        raise  # there is no text to understand
    except (ValueError, RecursionError) as fault:
        raise error(f"{file}: not valid {kind} ({fault})") from fault
    if not isinstance(found, dict):
        raise error(f"{file}: not a {kind} object")
    return found


def _yaml(file: Path) -> Any:
    """Return plain values only: what would make objects is refused."""
    import yaml  # few folders have any

    try:
        return yaml.safe_load(read_input(file, MAX_YAML))
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
