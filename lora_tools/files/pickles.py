"""PyTorch pickles, read with ``weights_only`` and never written."""

import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch

from lora_tools.errors import CheckpointError, some
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import LFS_POINTER, Spec, spec_of
from lora_tools.files.inputs import open_input
from lora_tools.files.location import Location, size_of

TIMES = 4
"""How many times its own size a pickle may hold: tensors may share their bytes, or be deflated."""

ALWAYS = 1 << 26
"""Bytes that a pickle may hold in any case."""

PLAIN = "Save its tensors as they are: torch.save of contiguous ones, or safetensors."


def load_pickle(path: Location) -> Checkpoint:
    """Load a ``.bin`` or ``.pt`` file that holds a flat dictionary of tensors, or a list of them.

    The tensors of a list are called #0, #1, … in its order; a dictionary that is all that another
    holds is taken for it, and so is a ``state_dict`` beside what a trainer notes of itself. Only
    tensors and plain containers are
    unpickled, so a hostile file cannot run code; and nothing that holds more than `TIMES` the
    bytes of the file, and `ALWAYS`: neither what is deflated, nor a tensor that repeats its
    elements. Raises `CheckpointError` for anything else.
    """
    most = max(TIMES * size_of(path), ALWAYS)
    with open_input(path) as file:
        try:
            _check_start(file, path)
            _check_records(file, most, path)
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # damaged bytes raise almost anything in there
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{path}: cannot be read as tensors only ({reason})").hint(
                "lora-tools never unpickles objects. Save the state dict as safetensors instead."
            ) from error
    beside: list[str] = []
    if isinstance(loaded, Mapping):
        whole, loaded = loaded, _inner(loaded)
        beside = [str(name) for name in whole if whole[name] is not loaded and whole is not loaded]
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
    _check_size(specs, most, path)
    notes = (f"state_dict was read, and not what is beside it: {some(beside)}.",) if beside else ()
    return Checkpoint(path, dict(loaded), specs, {}, notes)


def _inner(loaded: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the dictionary that is meant where one holds another."""
    inner = loaded.get("state_dict")
    if inner is None and len(loaded) == 1:
        (inner,) = loaded.values()  # {"model": {...}}
    return inner if isinstance(inner, Mapping) else loaded


def _check_start(file: IO[bytes], path: Location) -> None:
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself").hint(
            "Run `git lfs pull` in its repository, or download the file from its page."
        )
    file.seek(0)


def _check_records(file: IO[bytes], most: int, path: Location) -> None:
    """Raise `CheckpointError` if the records of a zip would be larger than ``most`` in all."""
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > most:
            raise CheckpointError(
                f"{path}: its records would inflate to {total:,} bytes, and at most {most:,} of it"
                " are read"
            ).hint(PLAIN)
    file.seek(0)


def _check_size(specs: Mapping[str, Spec], most: int, path: Location) -> None:
    """Raise `CheckpointError` for tensors that claim more than a file of this size can mean."""
    large = max(specs, key=lambda name: specs[name].nbytes, default="")
    total = sum(spec.nbytes for spec in specs.values())
    if total > most:
        raise CheckpointError(
            f"{path}: tensors of {total:,} bytes, and at most {most:,} are read of a file of this"
            f" size: {large} has the shape {list(specs[large].shape)}"
        ).hint(PLAIN)


def _is_named_tensor(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_conj() or value.is_neg())
        and value.device.type == "cpu"
    )
