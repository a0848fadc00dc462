"""Which weights of a base the modules of an adapter are added to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_tools.adapter import Adapter
from lora_tools.architectures.conventions import CONV1D_LAYERS, CONV1D_MODELS, RENAMED
from lora_tools.architectures.detection import Hints
from lora_tools.architectures.loading import kinds_of, loaded
from lora_tools.errors import FormatError
from lora_tools.files.typed import Fields
from lora_tools.formats.manifest import Extra, Module
from lora_tools.formats.sites import Linear
from lora_tools.matching.pieces import Site, Specs, exact, find, names
from lora_tools.matching.prefixes import Prefix, Prefixes, Swap, align, component
from lora_tools.matching.tables import Tabled, tabled


@dataclass(frozen=True, slots=True)
class Matching:
    """An adapter beside a base: where its modules and its other tensors belong."""

    adapter: Adapter
    prefixes: Prefixes
    tables: Tabled
    known: Mapping[str, Any]
    """What the configurations of both say, for what shapes leave open."""
    swaps: tuple[Swap, ...] = field(default=())
    kinds: frozenset[str] = frozenset()
    """What the base's model is called, which says how transformers renames its weights."""

    def sites(self, specs: Specs) -> dict[str, Site | None]:
        """Return the site of each module in a base of these tensors; None if it has no weight.

        Raises `FormatError` where neither shapes nor versions tell which side of a weight is its
        input, and where two components of the adapter belong in one place.
        """
        modules = self.adapter.manifest.modules
        found = {module.name: self._site(module, specs) for module in modules}
        memory = self._memory(specs)
        for module in modules if memory else ():
            if found[module.name] is None:
                found[module.name] = self._in_memory(module, memory, specs)
        taken: dict[tuple[str, int], str] = {}
        for name, site in found.items():
            for piece in site.pieces if site else ():
                other = taken.setdefault((piece.key, piece.start), name)
                if component(other) != component(name):
                    raise FormatError(
                        f"{self.adapter.path}: {other} and {name} both fit {piece.key}"
                    ).hint("Merge the part that this base is: split the adapter by its prefixes.")
        return found

    def key(self, extra: Extra, specs: Specs) -> str | None:
        """Return the tensor of the base that another tensor of the adapter is, or None."""
        name = extra.name or extra.key
        rekeyed = (name, *(name.replace(new, old) for new, old in RENAMED))
        keys = [self._prefix(name)(each) for each in rekeyed]
        keys += [s.add + name.removeprefix(s.drop) for s in self.swaps if name.startswith(s.drop)]
        found = (key for key in (*keys, self._memory(specs).get(name)) if key in specs)
        return next(found, None)

    def why(self, name: str) -> str:
        """Return why a module has no weight, with the names of both sides where they differ."""
        refused = self.prefixes.refused.get(component(f"{name}.weight"))
        return refused or self.tables.undecided.get(name) or "no such weight"

    def _prefix(self, name: str) -> Prefix:
        return self.prefixes.found.get(component(name), Prefix())

    def _memory(self, specs: Specs) -> dict[str, str]:
        """Return the weights that transformers renames, by their names in memory."""
        pairs = ((loaded(key, self.kinds), key) for key in specs)
        return {name: key for name, key in pairs if name != key}

    def _in_memory(self, module: Module, memory: Mapping[str, str], specs: Specs) -> Site | None:
        """Return the site of a module that the adapter has by its name in memory."""
        renamed = {name: specs[key] for name, key in memory.items()}
        site = find(module, Prefix(), renamed, self.known)
        if site is None:
            return None
        pieces = tuple(piece._replace(key=memory[piece.key]) for piece in site.pieces)
        return Site(pieces, site.misfit and memory.get(site.misfit, site.misfit))

    def _site(self, module: Module, specs: Specs) -> Site | None:
        own = exact(module, specs)
        if own and self._prefix(next(names(module))) == Prefix():
            return own
        if tables := self.tables.sites.get(module.name):
            return tables
        return find(module, self._prefix(next(names(module))), specs, self.known)


def match(adapter: Adapter, specs: Specs, config: Mapping[str, Any]) -> Matching:
    """Match an adapter to a base of these tensors and this configuration.

    What the base has by the adapter's own names belongs there. Else the tables of its family say
    where, if both files are of one that is known; else names alone, behind a prefix per component.
    Raises `FormatError` if a component fits in several places equally well.
    """
    fields = Fields("config.json", config)
    kind = fields.mapping("text_config").text("model_type") or fields.text("model_type")
    adapter = _stored_as(adapter, kind or "")
    manifest = adapter.manifest
    kinds = kinds_of(config)
    known = {"peft_version": manifest.config.get("peft_version"), "model_type": kind}
    wanted = [[*names(module)] for module in manifest.modules]
    wanted += [[extra.name or extra.key] for extra in manifest.extras]
    if all(any(name in specs for name in each) for each in wanted) and all(
        exact(module, specs) for module in manifest.modules
    ):
        return Matching(adapter, Prefixes(), Tabled({}), known, kinds=kinds)
    hints = Hints.of(config, manifest.base_model)
    tables = tabled(manifest.modules, specs, config, hints)
    left = [
        each
        for each, module in zip(wanted, manifest.modules, strict=False)
        if module.name not in tables.sites
    ]
    left += wanted[len(manifest.modules) :]
    whose = " ".join(_classes(config))
    prefixes = align(left, specs, whose).check(f"{adapter.path}: fits the base")
    swaps = tables.swaps + prefixes.swaps(each[0] for each in left)
    return Matching(adapter, prefixes, tables, known, swaps, kinds)


def _stored_as(adapter: Adapter, kind: str) -> Adapter:
    """Return an adapter with each layer as its base stores it, (in, out) or (out, in).

    PEFT asks the layer itself: its configuration has one ``fan_in_fan_out`` for all of them, which
    is that of the last one.
    """
    if kind not in CONV1D_MODELS:
        return adapter
    modules = tuple(
        replace(m, site=Linear(m.name.rpartition(".")[2] in CONV1D_LAYERS))
        if isinstance(m.site, Linear)
        else m
        for m in adapter.manifest.modules
    )
    return replace(adapter, manifest=replace(adapter.manifest, modules=modules))


def _classes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a configuration says of the part of a model that it is."""
    fields = Fields("config.json", config)
    yield fields.text("model_type") or ""
    yield fields.text("_class_name") or ""
