"""What a format is: a spelling of adapters, read from names and shapes and written back to them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lora_tools.formats.manifest import Manifest, Module
from lora_tools.storage.header import Spec

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


class Format(Protocol):
    """A spelling. Reading and writing are pure: names and shapes in, names and shapes out."""

    name: str
    about: str
    """Whose spelling it is, in a few words."""
    files: tuple[str, ...]
    """File names that it is usually found under, best first; none: the file has any name."""
    config_file: str | None
    """The configuration beside the tensors, if it has one."""
    expresses: frozenset[str] | None
    """The `kinds` that it can write beside plain linear layers; None: it is only read."""
    names: Literal["any", "authors", "diffusers"]
    """Whose names it gives the modules of a denoiser: whichever, its authors' or diffusers'."""

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Whether tensors of these names, with this configuration, are of this format."""
        ...

    def read(
        self,
        specs: Mapping[str, Spec],
        config: Mapping[str, Any] | None,
        metadata: Mapping[str, str],
        scalars: Mapping[str, float],
    ) -> Manifest:
        """Describe the adapter, its contradictions among the problems.

        ``scalars`` has the values of the tensors that are single numbers, such as alphas, and
        reads each when it is asked for. Raises `FormatError` or `UnsupportedError` where there is
        nothing to describe.
        """
        ...

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules in this format: new keys, shapes and configuration.

        A module may get another alpha where the format has fewer of them than modules; whoever
        writes rescales the factors to it. Raises `UnsupportedError` for what it cannot say.
        """
        ...

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make the update of a module from the file's tensors."""
        ...

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update: the inverse of `update`."""
        ...
