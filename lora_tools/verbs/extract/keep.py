"""What is finished is kept beside OUT until all is: the same command goes on where it stopped."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_tools.errors import CheckpointError, OutputError
from lora_tools.files.fingerprint import fingerprint
from lora_tools.files.header import spec_of
from lora_tools.files.layout import layout
from lora_tools.files.opening import open_checkpoint
from lora_tools.files.writer import TensorWriter
from lora_tools.model import Model

MANIFEST = "manifest.json"


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
        if not file.is_file():
            return None
        found = open_checkpoint(file)
        return Kept(found.arrays, json.loads(found.metadata["data"]))

    def save(self, name: str, arrays: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
        """Keep a piece."""
        file = self.folder / f"{name}.safetensors"
        temporary = file.with_suffix(".writing")
        temporary.unlink(missing_ok=True)
        specs = {key: spec_of(array) for key, array in arrays.items()}
        with TensorWriter(temporary, layout(specs, {"data": json.dumps(data)})) as writer:
            for key, array in arrays.items():
                writer[key] = array
        temporary.rename(file)

    def drop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_keep(out: Path, identity: Mapping[str, Any], *, resume: bool) -> Keep:
    """Return the folder of what is finished of this very extraction, empty if there is none.

    Raises `OutputError` if it is of another one: other inputs, options or versions.
    """
    folder = out.with_name(f"{out.name}.partial")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{manifest}: not valid JSON ({error})").hint(
                "Start over: --no-resume."
            ) from error
        if found != json.loads(json.dumps(identity)):
            changed = [key for key in identity if found.get(key) != identity[key]]
            raise OutputError(
                f"{folder}: was begun with other {', '.join(changed) or 'settings'}"
            ).hint("Repeat that command to go on, or start over: --no-resume.")
    elif folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder}: exists, and is no unfinished extraction").hint(
            "Move it away, or pass --no-resume to replace it."
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{MANIFEST}.writing"
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        temporary.rename(manifest)
    return Keep(folder)


def identity(base: Model, tuned: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results depend on: both inputs, the settings, the versions."""
    return {
        "base": _files(base),
        "tuned": _files(tuned),
        "settings": dict(settings),
        "versions": {
            "lora-tools": version("lora-tools"),
            "numpy": np.__version__,
        },
    }


def _files(model: Model) -> list[Any]:
    specs = json.dumps([[k, s.dtype, list(s.shape)] for k, s in model.tensors.specs.items()])
    return [
        *map(fingerprint, model.tensors.files),
        hashlib.blake2b(specs.encode(), digest_size=16).hexdigest(),
    ]
