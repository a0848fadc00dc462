"""Where an adapter lies: its tensor file and its configuration, of whatever format they are."""

from collections.abc import Mapping
from typing import Any

from lora_tools.errors import CheckpointError, FormatError
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX, sole
from lora_tools.files.ours import REPORT as OURS
from lora_tools.formats.base import Format
from lora_tools.formats.registry import FORMATS, known

REPORT = OURS
README = "README.md"


def tensor_file(path: Location) -> Location:
    """Return the tensor file of a folder; a file is its own. `CheckpointError` if there is none."""
    if not path.is_dir():
        if not is_present(path):
            raise CheckpointError(f"{path}: no such file or folder")
        return path
    for format in known():
        for name in format.files:
            if (path / name).is_file():
                return path / name
    if file := sole(path, (f"*{INDEX}", "*.safetensors", "*.gguf"), "tensor file"):
        return file
    raise CheckpointError(f"{path}: holds no adapter").hint(
        f"Expected {', '.join(name for format in known() for name in format.files)}."
    )


def configuration(folder: Location, own: Format | None = None) -> Mapping[str, Any] | None:
    """Return the configuration of a format, or else the one that a neighbour of it left there."""
    for format in (*([own] if own else []), *FORMATS):
        file = folder / format.config_file if format.config_file else None
        if file and is_present(file):
            return read_object(file, FormatError)
    return None
