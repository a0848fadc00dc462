"""What formats have in common that are read only: plain pairs of factors, to be written as PEFT."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from lora_tools.errors import UnsupportedError
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.formats.base import Names
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import low_rank

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


class ReadOnly:
    """A format whose files other tools write."""

    name: str
    why: str
    """Why it is not written."""
    supports: frozenset[str] | None = None
    container: Container = SAFETENSORS
    names: Names = "any"

    def write(self, manifest: Manifest) -> Manifest:
        """Refuse, with the reason."""
        self._refuse()

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return low_rank(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Refuse, as `write` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(f"{self.name} is read, not written: {self.why}").hint(
            "Write PEFT: lora-tools convert --to peft."
        )
