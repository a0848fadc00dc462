"""What a shrink asks of the adapter that it is given."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.sides import SideFiles
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest, Module

if TYPE_CHECKING:
    from lora_tools.update import Update


class Source(Protocol):
    """Modules whose updates can be read and spelled anew: an adapter, or one in other words."""

    @property
    def path(self) -> Path:
        """What was asked for: a folder or a file."""
        ...

    @property
    def format(self) -> Format:
        """What it is spelled in when it is written."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Its modules, at the ranks that their updates have."""
        ...

    @property
    def tensors(self) -> Checkpoint:
        """The file that they are read from."""
        ...

    @property
    def params(self) -> int:
        """Number of elements of all its tensors."""
        ...

    @property
    def nbytes(self) -> int:
        """Size of its tensors' files on disk."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Go through the names of its modules."""
        ...

    def update(self, module: Module, *, on_host: bool = True) -> "Update":
        """Return a module's update, in arrays of numpy where it has the type, or all in torch's."""
        ...

    def spelled(self, manifest: Manifest) -> Manifest:
        """Return a manifest of its modules as it will be written."""
        ...

    def side_files(self) -> SideFiles:
        """Return what else lies in its folder."""
        ...
