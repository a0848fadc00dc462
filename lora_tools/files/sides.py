"""What lies in a folder beside its tensors: what goes along with them, and what does not."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_tools.files.opening import INDEX, PICKLED_INDEX, PICKLES

WEIGHTS = (".safetensors", ".gguf", ".npz", *PICKLES)
INDICES = (INDEX, PICKLED_INDEX)


class SideFiles(NamedTuple):
    """The other files of a folder: those that go along, and why others do not."""

    carried: tuple[Path, ...]
    left_out: Mapping[str, str]


def side_files(folder: Path, ours: Collection[str | None]) -> SideFiles:
    """Return what lies in a folder besides the files named ``ours``."""
    carried, left_out = [], {}
    for file in sorted(folder.iterdir()):
        if file.name in ours:
            continue
        if file.is_dir():
            left_out[file.name] = "a folder"
        elif not file.is_file():
            left_out[file.name] = "not a file"
        elif file.suffix in WEIGHTS or file.name.endswith(INDICES):
            left_out[file.name] = "other weights or training state"
        elif file.name.startswith("."):
            left_out[file.name] = "hidden"
        else:
            carried.append(file)
    return SideFiles(tuple(carried), left_out)
