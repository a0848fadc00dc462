"""What a base calls the modules of an adapter: in transformers' memory, or in its files."""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple, TypeAlias

from lora_tools.adapter import Adapter
from lora_tools.architectures.loading import EXPERT, loaded, stacks
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Experts
from lora_tools.matching.adapters import match
from lora_tools.matching.pieces import Site, Specs
from lora_tools.model import Model

Names: TypeAlias = Literal["transformers5", "transformers4"]
"""Those in memory since transformers 4.52 (vision-language) and 5 (experts), or those of before,
which are still those on disk."""


class BaseNames(NamedTuple):
    """An adapter's modules and other tensors under the names of a base."""

    names: Mapping[str, str]
    """By the adapter's own name, of all that the base has a weight for."""
    unmatched: tuple[str, ...]
    """The others: the base has no such weight, or has it in pieces."""

    @property
    def changed(self) -> int:
        """How many names are others than before."""
        return sum(old != new for old, new in self.names.items())


def names_in(base: Model, adapter: Adapter, naming: Names) -> BaseNames:
    """Return what a base calls all that an adapter has. Costs names and shapes.

    Raises `FormatError` where parts of the adapter fit the base in several places equally.
    """
    specs = base.tensors.specs
    matching = match(adapter, specs, base.config)
    kinds = matching.kinds if naming == "transformers5" else frozenset[str]()
    sites = matching.sites(specs)
    manifest, found = adapter.manifest, dict[str, str]()
    for module in manifest.modules:
        site = sites[module.name]
        if site and site.pieces and (name := _name(module, site, specs, kinds)):
            found[module.name] = name
    for extra in manifest.extras:
        if key := matching.key(extra, specs):
            found[extra.name or extra.key] = loaded(key, kinds)
    every = [module.name for module in manifest.modules]
    every += [extra.name or extra.key for extra in manifest.extras]
    return BaseNames(found, tuple(name for name in every if name not in found))


def _name(module: Module, site: Site, specs: Specs, kinds: Collection[str]) -> str | None:
    """Return the name of a module whose weight the base has by itself, or one for each expert."""
    keys = list(dict.fromkeys(piece.key for piece in site.pieces))
    name, experts = loaded(keys[0], kinds), isinstance(module.site, Experts)
    if len(keys) == 1 and experts:
        return name
    if len(keys) == 1 and specs[keys[0]].shape == module.shape:
        return name.removesuffix(".weight")
    apart = EXPERT.fullmatch(name)
    if experts and apart and stacks(kinds):
        return f"{apart['experts']}.{module.name.rpartition('.')[2]}"
    return None
