"""PyTorch pickles, read with ``weights_only`` and never written."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from lora_tools.errors import CheckpointError, some
from lora_tools.storage.checkpoint import Checkpoint
from lora_tools.storage.dtypes import code_of
from lora_tools.storage.header import LFS_POINTER, Spec


def load_pickle(path: Path) -> Checkpoint:
    """Load a ``.bin`` or ``.pt`` file that holds a flat dictionary of tensors.

    Only tensors and plain containers are unpickled, so a hostile file cannot run code. Raises
    `CheckpointError` for anything else.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself").hint(
            "Run `git lfs pull` in its repository, or download the file from its page."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as tensors only ({reason})").hint(
            "lora-tools never unpickles objects. Save the state dict as safetensors instead."
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not named tensors")
    others = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{path}: not tensors: {some(others)}")
    specs = {
        name: Spec(code_of(tensor.dtype), tuple(tensor.shape)) for name, tensor in loaded.items()
    }
    return Checkpoint(path, dict(loaded), specs, {})
