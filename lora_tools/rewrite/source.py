"""What is rewritten: an adapter's updates, under the names of the format that they will have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.files.address import Address, reopened
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.location import Location
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.linalg.blocks import Rows, of_rows, upon
from lora_tools.linalg.factors import host
from lora_tools.linalg.projection import Projection
from lora_tools.linalg.rescale import summed
from lora_tools.linalg.tiles import Tiled, normalised, product
from lora_tools.rewrite.bases import BaseWeights
from lora_tools.rewrite.experts import Member, Stack
from lora_tools.update import Biased, DoRA, Update, factors

if TYPE_CHECKING:
    from lora_tools.rules import ParametrisedRule


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

    def files(self, adapter: Adapter) -> Iterator[tuple[Adapter, Module]]:
        """Yield what it is made of, and the adapter that holds it."""
        yield from ((adapter, module) for module in self.modules)


class Term(NamedTuple):
    """A summand: a module of a source, and what its update is multiplied by."""

    source: "Source"
    module: Module
    weight: float
    number: int = 1
    """Which of several adapters it is of, from 1."""


class Sum(NamedTuple):
    """The weighted updates that a module to be written is the sum of."""

    terms: tuple[Term, ...]
    rule: "ParametrisedRule | Projection | None" = None
    """How they are combined; None: by their sum."""
    base: BaseWeights | None = None
    """The weights that DoRA normalises, so that what it adds to them has full rank."""

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the files, if side by side."""
        pairs = (term.source.origins[term.module.name].is_pair for term in self.terms)
        return self.rule is None and all(pairs)

    @property
    def is_moved(self) -> bool:
        """Whether its rank may be less than that of its factors."""
        return len(self.terms) > 1 or self.rule is not None

    @property
    def is_dense(self) -> bool:
        """Whether it has full rank, and is formed a tile at a time."""
        if self._parametrised and self._parametrised.rule.space == "dense":
            return True
        return self.base is not None and any(term.module.is_dora for term in self.terms)

    @property
    def _parametrised(self) -> "ParametrisedRule | None":
        return None if isinstance(self.rule, Projection) else self.rule

    @property
    def weights(self) -> list[float]:
        """What each update is multiplied by."""
        return [term.weight for term in self.terms]

    def update(self, adapter: Adapter, module: Module, *, on_host: bool = True) -> Update:
        """Read the updates and return their sum, exactly."""
        return self.total(self.updates(module, on_host=on_host), module)

    def updates(self, module: Module, *, on_host: bool = True) -> list[Update]:
        """Read the updates, with no part that the module does not have."""
        found = [term.source.update(term.module, on_host=on_host) for term in self.terms]
        return found if self.is_dense else [_kept(update, module) for update in found]

    def tiled(self, updates: Sequence[Update], module: Module) -> list[list[Tiled]]:
        """Return the weighted updates by rows, for each member of the module's stack."""
        whole = None
        if self.base and any(isinstance(update, DoRA) for update in updates):
            whole = self.base.weight(module)
        pairs = list(zip(updates, self.weights, strict=True))
        stack = np.ndindex(factors(updates[0]).b.shape[:-2])
        return [[_tiled(update, weight, at, whole) for update, weight in pairs] for at in stack]

    def tiles(self, updates: Sequence[Tiled], module: Module) -> Iterator[np.ndarray]:
        """Yield the rows of what is made of weighted updates, one tile after another."""
        if self._parametrised:
            yield from self._parametrised.tiles(updates, module.name)
            return
        for span in updates[0].spans:
            yield sum((update.rows(*span) for update in updates[1:]), updates[0].rows(*span))

    def total(self, updates: Sequence[Update], module: Module) -> Update:
        """Return the weighted sum of the updates, or what the rule makes of them."""
        if self.rule:
            return self.rule([factors(update) for update in updates], self.weights, module.name)
        kind = DTYPES[module.parts["bias"].spec.dtype if "bias" in module.parts else "F64"].torch
        return summed(updates, self.weights, str(kind))

    def files(self, adapter: Adapter) -> Iterator[tuple[Adapter, Module]]:
        """Yield what it is made of, and the adapters that hold it."""
        for term in self.terms:
            made = term.source.origins[term.module.name]
            yield from made.files(term.source.adapter)


Made: TypeAlias = Origin | Member | Stack | Sum
"""How a module to be written comes from the modules of files."""


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter whose modules have the names and the layout of the format to be written."""

    adapter: Adapter
    """The one that is rewritten; of several, the first, beside whose updates all else is taken."""
    format: Format
    manifest: Manifest
    """The modules under their new names, at the rank that their factors have."""
    origins: Mapping[str, Made]
    address: Address
    """How another process finds the same origins."""
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is left out because it was asked for, by feature."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The ranks of updates that their factors are larger than, but for rounding."""
    removed: Mapping[str, float] = field(default_factory=dict)
    """The norms of the updates of modules that are left out because it was asked for."""
    others: tuple[Adapter, ...] = ()
    """Further adapters whose updates it holds."""

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
        """Number of elements of all tensors of its adapters."""
        return sum(adapter.params for adapter in self.adapters)

    @property
    def nbytes(self) -> int:
        """Size of the tensors' files of its adapters."""
        return sum(adapter.nbytes for adapter in self.adapters)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All that its updates are read from."""
        return (self.adapter, *self.others)

    def update(self, module: Module, *, on_host: bool = True) -> Update:
        """Read a module's update, exactly that of the adapter."""
        return self.origins[module.name].update(self.adapter, module, on_host=on_host)

    def left_out(self, written: Manifest) -> dict[str, str]:
        """Return the files and header fields that are not written, and why."""
        old, same = self.adapter.format, self.adapter.format.name == self.format.name
        found = dict(self.adapter.side_files().left_out)
        if old.config_file and self.adapter.config and not same:
            found[old.config_file] = "read for its meaning; its other fields have no place"
        for other in self.others:
            names = [file.name for file in other.side_files().carried]
            names += [old.config_file] if old.config_file and other.config else []
            fields = dict(other.manifest.metadata.items() - written.metadata.items())
            names += [f"header field {key}" for key in sorted(fields)]
            found |= {
                f"{other.path}: {name}": "of another adapter than the first" for name in names
            }
        gone = self.adapter.manifest.metadata.keys() - written.metadata.keys()
        return found | {f"header field {key}": "describes another file" for key in sorted(gone)}


def source(adapter: Adapter) -> Source:
    """Return an adapter as the source of one in the same format."""
    origins: dict[str, Made] = {m.name: Origin((m,)) for m in adapter.manifest.modules}
    address = Address(source, (adapter.address,))
    return Source(adapter, adapter.format, adapter.manifest, origins, address)


def _tiled(update: Update, weight: float, at: tuple[int, ...], whole: np.ndarray | None) -> Tiled:
    low = factors(update)
    b, a = host(low.b[at]), host(low.a[at])
    if isinstance(update, DoRA) and whole is not None:
        change = product(low.scale * b, a)
        return normalised(change, whole, host(update.magnitude).reshape(-1), weight)
    return product(weight * low.scale * b, a)


def _kept(update: Update, module: Module) -> Update:
    """Return an update without the parts that the module does not have."""
    match update:
        case DoRA(direction=low) if not module.is_dora:
            return low
        case Biased(weight=low) if "bias" not in module.parts:
            return low
        case _:
            return update
