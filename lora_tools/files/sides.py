"""What lies in a folder beside its tensors: what goes along with them, and what does not."""

import errno
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lora_tools.errors import CheckpointError
from lora_tools.files.disk import naming
from lora_tools.files.location import Location, entries, local, size_of
from lora_tools.files.opening import INDEX, PICKLED_INDEX, PICKLES

WEIGHTS = (".safetensors", ".gguf", ".npz", *PICKLES)
INDICES = (INDEX, PICKLED_INDEX)
FOLDER = "a folder"
LARGEST = 1 << 30
"""Bytes of a side file, at most: tokenizers and cards have a hundredth of it."""


class SideFiles(NamedTuple):
    """The other files of a folder: those that go along, and why others do not."""

    carried: tuple[Location, ...]
    left_out: Mapping[str, str]


def side_files(folder: Location, ours: Collection[str | None]) -> SideFiles:
    """Return what lies in a folder besides the files named ``ours``. Opens none of them."""
    carried, left_out = [], {}
    for file in entries(folder):
        if file.name in ours:
            continue
        if why := why_not(file):
            left_out[file.name] = why
        else:
            carried.append(file)
    return SideFiles(tuple(carried), left_out)


def why_not(file: Location) -> str:
    """Return why a file of a folder does not go along, in a few words; nothing if it does.

    A folder may be anybody's: a link in it that leads elsewhere would take along what its reader
    has there, and a pipe would be waited for.
    """
    names = {file.name}
    if isinstance(file, Path) and file.is_symlink():
        target = Path(os.path.realpath(file))
        if not is_within(file.parent, target):
            return "a link that leaves the folder"
        names.add(target.name)
    if file.is_dir():
        return FOLDER
    try:
        size = size_of(file)
    except OSError as error:
        return "a link that leads in circles" if error.errno == errno.ELOOP else "a link to nothing"
    if not file.is_file():
        return "not a file"
    if any(Path(name).suffix in WEIGHTS or name.endswith(INDICES) for name in names):
        return "other weights or training state"
    if any(name.startswith(".") for name in names):
        return "hidden"
    return "larger than 1 GiB" if size > LARGEST else ""


def is_within(folder: Path, target: Path) -> bool:
    """Whether a real path is in a folder, or is where the Hub's cache keeps that folder's files."""
    root = Path(os.path.realpath(folder))
    if target.is_relative_to(root):
        return True
    for snapshot in (root, *root.parents):
        cache = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and cache.name.startswith("models--"):
            return target.parent == cache / "blobs"
    return False


def carry(file: Location, target: Path) -> None:
    """Copy a side file to a path that does not exist yet, with no more rights than it has.

    Raises `CheckpointError` if it has become something else than a file, `DiskError` if the disk
    refuses.
    """
    with opened(file) as source, naming(target), create(target, source) as copy:
        shutil.copyfileobj(source, copy)


def opened(file: Location) -> BinaryIO:
    """Open a side file for reading: nothing but a file, wherever a link may lead by now."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    source = os.fdopen(os.open(os.path.realpath(local(file)), flags), "rb")
    if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        source.close()
        raise CheckpointError(f"{file}: not a file")
    return source


def create(target: Path, source: BinaryIO) -> BinaryIO:
    """Create a file with the rights that the umask leaves, and none that its source withholds."""
    mode = os.fstat(source.fileno()).st_mode & 0o666 | stat.S_IRUSR | stat.S_IWUSR
    return os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
