"""PyTorch pickles, read with ``weights_only`` and never written."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lora_tools.errors import CheckpointError, some
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import LFS_POINTER, spec_of


def load_pickle(path: Path) -> Checkpoint:
    """Load a ``.bin`` or ``.pt`` file that holds a flat dictionary of tensors, or a list of them.

    The tensors of a list are called #0, #1, … in its order; a dictionary that is all that another
    holds is taken for it. Only tensors and plain containers are
    unpickled, so a hostile file cannot run code. Raises `CheckpointError` for anything else.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself").hint(
            "Run `git lfs pull` in its repository, or download the file from its page."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise almost anything in there
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as tensors only ({reason})").hint(
            "lora-tools never unpickles objects. Save the state dict as safetensors instead."
        ) from error
    if isinstance(loaded, Mapping) and len(loaded) == 1:
        (inner,) = loaded.values()
        loaded = inner if isinstance(inner, Mapping) else loaded  # {"model": {...}}
    if isinstance(loaded, list) and loaded:
        loaded = {f"#{number}": value for number, value in enumerate(loaded)}
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not named tensors")
    others = [name for name, value in loaded.items() if not _is_named_tensor(name, value)]
    if others:
        raise CheckpointError(f"{path}: not named, dense tensors: {some(others)}")
    try:
        specs = {name: spec_of(tensor) for name, tensor in loaded.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(path, dict(loaded), specs, {})


def _is_named_tensor(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )
