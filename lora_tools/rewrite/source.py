"""What is rewritten: an adapter's updates, under the names of the format that they will have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.files.address import Address, reopened
from lora_tools.files.location import Location
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.linalg.blocks import Rows, of_rows, upon
from lora_tools.update import Biased, DoRA, Update


class Origin(NamedTuple):
    """The modules of the adapter that a module to be written is made of."""

    modules: tuple[Module, ...]
    """As the adapter describes them."""
    rows: tuple[Rows | None, ...] = (None,)
    """The rows of each module's B that are written; None: all."""
    places: tuple[Rows, ...] = ()
    """The rows that they become, where those of one module are not all of them in order."""

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors."""
        return all(module.is_pair for module in self.modules)

    @property
    def is_moved(self) -> bool:
        """Whether it is made of some rows of modules, or of several."""
        return bool(self.places) or self.rows != (None,)

    def update(self, adapter: Adapter, module: Module, *, on_host: bool = True) -> Update:
        """Read the update of ``module``, exactly that of the adapter."""
        updates = [
            update if rows is None else of_rows(update, rows)
            for old, rows in zip(self.modules, self.rows, strict=True)
            for update in [_kept(adapter.update(old, on_host=on_host), module)]
        ]
        return upon(updates, self.places, module.out) if self.places else updates[0]


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter whose modules have the names and the layout of the format to be written."""

    adapter: Adapter
    format: Format
    manifest: Manifest
    """The modules under their new names, at the rank that their factors have."""
    origins: Mapping[str, Origin]
    address: Address
    """How another process finds the same origins."""
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is left out because it was asked for, by feature."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The ranks of updates that their factors are larger than, but for rounding."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address, for the origins; what was measured goes with each job."""
        return reopened, (self.address,)

    def __iter__(self) -> Iterator[str]:
        return (module.name for module in self.manifest.modules)

    def __len__(self) -> int:
        return len(self.manifest.modules)

    @property
    def path(self) -> Location:
        """What was asked for: a folder or a file."""
        return self.adapter.path

    @property
    def params(self) -> int:
        """Number of elements of all tensors of the adapter."""
        return self.adapter.params

    def update(self, module: Module, *, on_host: bool = True) -> Update:
        """Read a module's update, exactly that of the adapter."""
        return self.origins[module.name].update(self.adapter, module, on_host=on_host)

    def left_out(self, written: Manifest) -> dict[str, str]:
        """Return the files and header fields that are not written, and why."""
        old, same = self.adapter.format, self.adapter.format.name == self.format.name
        found = dict(self.adapter.side_files().left_out)
        if old.config_file and self.adapter.config and not same:
            found[old.config_file] = "read for its meaning; its other fields have no place"
        gone = self.adapter.manifest.metadata.keys() - written.metadata.keys()
        return found | {f"header field {key}": "describes another file" for key in sorted(gone)}


def source(adapter: Adapter) -> Source:
    """Return an adapter as the source of one in the same format."""
    origins = {module.name: Origin((module,)) for module in adapter.manifest.modules}
    address = Address(source, (adapter.address,))
    return Source(adapter, adapter.format, adapter.manifest, origins, address)


def _kept(update: Update, module: Module) -> Update:
    """Return an update without the parts that the module does not have."""
    match update:
        case DoRA(direction=low) if not {"magnitude", "columns"} & module.parts.keys():
            return low
        case Biased(weight=low) if "bias" not in module.parts:
            return low
        case _:
            return update
