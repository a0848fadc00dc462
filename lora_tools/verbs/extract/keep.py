"""What is finished is kept beside OUT until all is: the same command resumes where it stopped."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_tools.files.fingerprint import fingerprint
from lora_tools.files.header import spec_of
from lora_tools.files.journal import Journal
from lora_tools.files.layout import layout
from lora_tools.files.opening import open_checkpoint
from lora_tools.files.writer import TensorWriter
from lora_tools.model import Model
from lora_tools.verbs.extract.rows import SCHEMA
from lora_tools.version import __version__

PIECES = "pieces"


class Kept(NamedTuple):
    """Arrays and plain data of one finished piece of work."""

    arrays: Mapping[str, np.ndarray]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Keep:
    """A folder of finished pieces, each one file that is there whole or not at all."""

    folder: Path

    def load(self, name: str) -> Kept | None:
        """Return a finished piece, or None."""
        file = self.folder / f"{name}.safetensors"
        return load_kept(file) if file.is_file() else None

    def save(self, name: str, arrays: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Keep a piece."""
        file = self.folder / f"{name}.safetensors"
        temporary = file.with_suffix(".writing")
        specs = {key: spec_of(array) for key, array in arrays.items()}
        with TensorWriter(temporary, layout(specs, {"data": json.dumps(data)})) as writer:
            for key, array in arrays.items():
                writer[key] = array
        temporary.rename(file)


def load_kept(file: Path) -> Kept:
    """Return a piece from its file."""
    found = open_checkpoint(file)
    return Kept(found.arrays, json.loads(found.metadata["data"]))


def open_keep(journal: Journal) -> Keep:
    """Return the folder of the pieces in a journal, which holds no other than sound ones."""
    folder = journal.path(PIECES)
    folder.mkdir(exist_ok=True)
    return Keep(folder.absolute())  # another process may be in another folder


def note(journal: Journal, name: str) -> None:
    """Let the next run trust a piece that is kept."""
    file = piece(name)
    if file not in journal.done:
        journal.finish(file)


def piece(name: str) -> str:
    """Return what a journal calls a piece."""
    return f"{PIECES}/{name}.safetensors"


def identity(base: Model, tuned: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results depend on: both inputs, the settings, the versions."""
    return {
        "base": _files(base),
        "tuned": _files(tuned),
        "settings": dict(settings),
        "versions": {
            "lora-tools": __version__,
            "numpy": np.__version__,
            "rows": SCHEMA,
        },
    }


def _files(model: Model) -> list[Any]:
    specs = json.dumps([[k, s.dtype, list(s.shape)] for k, s in model.tensors.specs.items()])
    return [
        *map(fingerprint, model.tensors.files),
        hashlib.blake2b(specs.encode(), digest_size=16).hexdigest(),
    ]
