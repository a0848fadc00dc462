"""Opening checkpoints: the files they are made of, and what an index of shards must agree with."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_tools.errors import CheckpointError, some
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.gguf import read_gguf
from lora_tools.files.header import Spec, read_header
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location, entries
from lora_tools.files.objects import read_object
from lora_tools.files.pipeline import is_pipeline, open_pipeline
from lora_tools.files.place import Place
from lora_tools.files.typed import Fields

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".lora")
SHARDS = (".safetensors", *PICKLES)
INDEX = ".safetensors.index.json"
PICKLED_INDEX = ".bin.index.json"
NAMED = (
    "model.safetensors",
    f"model{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model{PICKLED_INDEX}",
)
"""What transformers looks for in a folder, in its order, whatever lies beside it."""
PATTERNS = (f"*{INDEX}", "*.safetensors", f"*{PICKLED_INDEX}", "*.bin", "*.gguf")
NUMBERED = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
LONGEST = 255
"""Bytes of a file's name that file systems take."""
READERS = 8
"""Headers that are read at the same time."""


def open_checkpoint(path: Location) -> Checkpoint:
    """Open a safetensors, GGUF or npz file, an index of shards, a folder with either, or pickles.

    A pipeline of diffusers is opened with all its models, as `open_pipeline` says.

    Raises `CheckpointError` when there is no such file, when it is damaged, or when an index and
    its shards disagree. Costs the headers; torch is imported for pickles only.
    """
    if path.is_dir():
        if is_pipeline(path):
            return open_pipeline(path, open_checkpoint)
        file = _file_in(path)
        return _beside(open_checkpoint(file), file)
    if not is_present(path):
        raise CheckpointError(f"{path}: no such file or folder")
    if path.name.endswith(INDEX):
        return _open_shards(path)
    if path.name.endswith(PICKLED_INDEX):
        return _open_pickled_shards(path)
    if path.suffix in PICKLES:
        from lora_tools.files.pickles import load_pickle  # needs torch

        return load_pickle(path)
    if path.suffix == ".npz":
        from lora_tools.files.npz import read_npz  # needs zipfile, and few files are such

        return read_npz(path)
    if path.suffix == ".gguf":
        return read_gguf(path)
    header = read_header(path)
    places = {name: Place(path, slot) for name, slot in header.slots.items()}
    return Checkpoint(path, places, _specs(places), header.metadata)


def open_partly(path: Location) -> tuple[Checkpoint, tuple[str, ...]]:
    """Open a checkpoint of which shards may be missing; return their names, too."""
    index = path if path.name.endswith(INDEX) else None
    if path.is_dir():
        found = entries(path, f"*{INDEX}")
        index = found[0] if len(found) == 1 else None
    if index is None or not index.is_file():
        return open_checkpoint(path), ()
    files = _files(index)
    missing = tuple(name for name in sorted(files) if not (index.parent / name).is_file())
    return _open_shards(index, absent=frozenset(missing)), missing


def sole(folder: Location, patterns: Iterable[str], what: str) -> Location | None:
    """Return the file of a folder that fits the first pattern that any fits, or None.

    Raises `CheckpointError` if several fit it; ``what`` is what messages call them.
    """
    found = next(filter(None, (entries(folder, pattern) for pattern in patterns)), [])
    if len(found) > 1:
        names = some(file.name for file in found)
        raise CheckpointError(f"{folder}: more than one {what}: {names}").hint(
            "Name the one that is meant."
        )
    return found[0] if found else None


def _file_in(folder: Location) -> Location:
    for name in NAMED:
        if named := entries(folder, name):
            return named[0]
    for pattern in PATTERNS:
        found = entries(folder, pattern)
        if len(found) > 1 and all(NUMBERED.fullmatch(file.name) for file in found):
            raise CheckpointError(
                f"{folder}: shards without their index: {some(file.name for file in found)}"
            ).hint(f"Download {NAMED[1]}, too: it says which tensors there should be.")
    if file := sole(folder, PATTERNS, "checkpoint"):
        return file
    raise CheckpointError(f"{folder}: holds no safetensors file and no {INDEX[1:]}")


def _beside(checkpoint: Checkpoint, file: Location) -> Checkpoint:
    """Return a folder's checkpoint with a note on the weights there that are not read."""
    read = {each.name for each in checkpoint.files} | {file.name}
    shards = {Path(name).name for name in _files(file)} if file.name.endswith(".json") else set()
    found = dict.fromkeys(each.name for p in PATTERNS for each in entries(file.parent, p))
    others = [name for name in found if name not in read | shards]
    if not others:
        return checkpoint
    return checkpoint.noted(f"{file.name} is read, and not {some(others)} beside it.")


def _files(index: Location) -> dict[str, list[str]]:
    """Return the tensors that an index names, by the file that it says they are in."""
    fields = Fields(str(index), read_object(index), CheckpointError)
    if fields.values.get("weight_map") is None:
        raise CheckpointError(f"{index}: not an index of shards: it has no weight_map")
    files: dict[str, list[str]] = {}
    weights = fields.mapping("weight_map")
    for name in weights.values:
        file = weights.text(name)
        if not file or "\0" in file or len(file.encode()) > LONGEST:
            raise weights.refusal(name, "the name of a file")
        files.setdefault(file, []).append(name)
    if strays := [file for file in files if not _stays(file)]:
        raise CheckpointError(f"{index}: names shards outside its folder: {some(strays)}").hint(
            "Nothing there was opened. The shards of a checkpoint lie beside its index."
        )
    # A merge names its files as the base does: no shard may pass for a configuration or a card.
    if others := [file for file in files if Path(file).suffix not in SHARDS]:
        raise CheckpointError(f"{index}: names files that are no shards: {some(others)}")
    return files


def _stays(file: str) -> bool:
    """Whether the name of a shard leads to a file in or below the folder of its index."""
    return not file.startswith("/") and ".." not in file.split("/")


def _weight_map(
    index: Location, absent: frozenset[str] = frozenset()
) -> tuple[dict[str, str], list[str]]:
    """Return the file of each tensor that an index names, and the files, but for absent ones."""
    contents = _files(index)
    files = sorted(contents.keys() - absent)
    weight_map = {name: file for file in files for name in contents[file]}
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: missing shards: {some(missing)}")
    return weight_map, files


def _open_pickled_shards(index: Location) -> Checkpoint:
    """Open pickled shards. All of them are held in memory: pickles cannot be read in parts."""
    from lora_tools.files.pickles import load_pickle  # needs torch

    weight_map, files = _weight_map(index)
    shards = [load_pickle(index.parent / file) for file in files]
    places = {name: tensor for shard in shards for name, tensor in shard.items()}
    specs = {name: spec for shard in shards for name, spec in shard.specs.items()}
    absent = sorted(weight_map.keys() - places.keys())
    if absent:
        raise CheckpointError(f"{index}: the shards do not hold {some(absent)}")
    return Checkpoint(index, places, specs, {})


def _open_shards(index: Location, absent: frozenset[str] = frozenset()) -> Checkpoint:
    weight_map, files = _weight_map(index, absent)
    places: dict[str, Place] = {}
    metadata: dict[str, str] = {}
    unnamed = []
    with ThreadPoolExecutor(READERS) as pool:  # those of a remote checkpoint take their time
        headers = list(pool.map(lambda file: read_header(index.parent / file), files))
    for file, header in zip(files, headers, strict=True):
        metadata.update(header.metadata)
        for name, slot in header.slots.items():
            if weight_map.get(name) == file:
                places[name] = Place(index.parent / file, slot)
            elif name not in weight_map:
                unnamed.append(f"{name} of {file}")
    unheld = sorted(weight_map.keys() - places.keys())
    if unheld:
        raise CheckpointError(f"{index}: the shards do not hold {some(unheld)}")
    if unnamed:
        raise CheckpointError(f"{index}: does not name {some(unnamed)}").hint(
            "Index and shards are of different checkpoints; download them again."
        )
    return Checkpoint(index, places, _specs(places), metadata)


def _specs(places: Mapping[str, Place]) -> dict[str, Spec]:
    return {name: place.slot.spec for name, place in places.items()}
