"""Configurations: JSON files that hold one object."""

import json
from pathlib import Path
from typing import Any

from lora_tools.errors import FormatError


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that is the whole of a file.

    Raises `FormatError` if it is anything else.
    """
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file}: not a JSON object")
    return found
