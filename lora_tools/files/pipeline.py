"""Folders of diffusers' pipelines: the models in their folders, as one checkpoint."""

from collections.abc import Callable

from lora_tools.errors import CheckpointError
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location, entries

MODEL_INDEX = "model_index.json"
"""What says of a folder that it is a pipeline's, and which classes load its models."""

NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin")
WHOLE = tuple(f"{name}{ending}" for ending in ENDINGS for name in NAMES)
"""The weights that are loaded where nobody asks for a variant of them, the first that is there."""


def is_pipeline(folder: Location) -> bool:
    """Whether a folder is a pipeline's."""
    return is_present(folder / MODEL_INDEX)


def open_pipeline(folder: Location, open_one: Callable[[Location], Checkpoint]) -> Checkpoint:
    """Open the models of a pipeline, every tensor behind the name of its model's folder and a dot.

    ``open_one`` opens the weights of one. Folders without weights, as a tokenizer's, have no part
    in it. Raises `CheckpointError` if none has any, and what ``open_one`` does.
    """
    found = {
        entry.name: open_one(weights)
        for entry in entries(folder)
        if entry.is_dir() and "." not in entry.name and (weights := _weights(entry))
    }
    if not found:
        raise CheckpointError(f"{folder}: {MODEL_INDEX} is there, but no model's weights are")
    places = {f"{part}.{key}": place for part, own in found.items() for key, place in own.places}
    specs = {
        f"{part}.{key}": spec for part, own in found.items() for key, spec in own.specs.items()
    }
    return Checkpoint(folder / MODEL_INDEX, places, specs, {}, parts=found)


def _weights(folder: Location) -> Location | None:
    """Return the weights of a model; the folder itself if they have no usual name."""
    names = {entry.name for entry in entries(folder)}
    if name := next((name for name in WHOLE if name in names), None):
        return folder / name
    return folder if any(name.endswith((*ENDINGS, ".gguf")) for name in names) else None
