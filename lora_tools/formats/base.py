"""What a format is: a naming of adapters, read from names and shapes and written back to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from lora_tools.files.container import Container
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Manifest, Module

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


Names: TypeAlias = Literal["any", "original", "diffusers", "trainers"]
"""Any, original ones, diffusers', or a trainer's: any for UNets, which are trained under
both, and the original ones for all others."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What an adapter is read from: what its files hold, and what is known of it besides."""

    specs: Mapping[str, Spec]
    config: Mapping[str, Any] | None = None
    """The configuration beside the tensors, if there is one."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header's metadata."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """The values of the tensors that are single numbers, each read when it is asked for."""
    base: Mapping[str, Any] | None = None
    """The configuration of the base model, if it is given: head counts, which some files lack."""
    alpha: float | None = None
    """Alpha as a person states it, for files that have none and mean none to be guessed."""


class Format(Protocol):
    """A naming. Reading and writing are pure: names and shapes in, names and shapes out."""

    name: str
    about: str
    """Whose naming it is, in a few words."""
    files: tuple[str, ...]
    """File names that it is usually found under, best first; none: the file has any name."""
    config_file: str | None
    """The configuration beside the tensors, if it has one."""
    supports: frozenset[str] | None
    """The `kinds` that it can write beside plain linear layers; None: it is only read."""
    container: Container
    """The kind of file that it is written to; it may be read from others."""
    names: Names
    """Whose names it gives the modules of a diffusion model."""

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Whether tensors of these names, with this configuration, are of this format."""
        ...

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter, its contradictions among the problems.

        Raises `FormatError` or `UnsupportedError` where there is nothing to describe.
        """
        ...

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys of modules in this format: new keys, shapes and configuration.

        A module may get another alpha where the format has fewer of them than modules; whoever
        writes rescales the factors to it. Its dtypes may change where the container lacks
        them. Raises `UnsupportedError` for what it does not support.
        """
        ...

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make the update of a module from the file's tensors."""
        ...

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update: the inverse of `update`."""
        ...
