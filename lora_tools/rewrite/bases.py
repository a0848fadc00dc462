"""The base weights of modules whose updates depend on them, as DoRA's do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.base import Base, Rows, base_of
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.dtypes import DTYPES
from lora_tools.formats.manifest import Module
from lora_tools.linalg.tiles import DOUBLE
from lora_tools.matching import Site, match
from lora_tools.model import Model
from lora_tools.shapes import Float


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """A base, and where each of some modules has its weight there."""

    base: Base
    sites: Mapping[str, Site]

    def weight(self, module: Module) -> Float[np.ndarray, "out inp"]:
        """Read the weight of a module, as its update lies: float32, or float64 if that is stored.

        Memory holds all of it.
        """
        pieces = self.sites[module.name].pieces
        wide = any(DTYPES[self.base[p.key].spec.dtype].bits > 32 for p in pieces)
        small = module.out * module.inp <= DOUBLE
        found = np.empty((module.out, module.inp), np.float64 if wide or small else np.float32)
        for piece in pieces:
            rows = [row for run in piece.rows for row in run]
            height = module.inp if piece.transposed else len(rows)
            with Rows(self.base[piece.key], len(rows) if piece.transposed else module.inp) as of:
                step = max((1 << 20) // max(module.inp, 1), 1)
                for start in range(0, height, step):
                    stop = min(start + step, height)
                    block = of.wide(piece.start + start, piece.start + stop)
                    if piece.transposed:
                        found[rows, start:stop] = block.T
                    else:
                        found[rows[start:stop]] = block
        return found


def base_weights(adapter: Adapter, modules: Sequence[Module], model: Model) -> BaseWeights:
    """Find the weights of modules in a base; headers are all that is read.

    Raises `FormatError`, with the names, for modules that have none there.
    """
    base = base_of(model, "Give the weights that it was quantised from.")
    alike = replace(adapter.manifest, modules=tuple(modules), extras=())
    sites = match(replace(adapter, manifest=alike), base.specs, model.config).sites(base.specs)
    missing = [name for name, site in sites.items() if site is None or site.misfit]
    if missing:
        raise FormatError(f"{model.path}: has no weight that fits {some(missing)}").hint(
            "Give the base model that the adapters were trained on."
        )
    found = {name: site for name, site in sites.items() if site is not None}
    odd = [module.name for module in modules if module.stack > 1]
    if odd:
        raise UnsupportedError(f"{adapter.path}: DoRA of several matrices at once: {some(odd)}")
    return BaseWeights(base, found)
