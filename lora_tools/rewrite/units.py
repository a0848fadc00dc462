"""What a rank is chosen for: a module, or several that their base layer makes share one."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from lora_tools.formats.manifest import Module
from lora_tools.linalg.spectrum import Spectrum, choices
from lora_tools.rewrite.jobs import Decomposition
from lora_tools.rewrite.options import RewriteOptions
from lora_tools.rewrite.source import Source


@dataclass(frozen=True, slots=True)
class Unit:
    """Modules of one owner, which have one rank, and their spectra."""

    modules: tuple[Module, ...]
    found: tuple[Decomposition, ...]
    own: int
    """The rank that its updates have, which may be less than that of their factors."""

    @property
    def head(self) -> Module:
        """The first of its modules, by whose name the options find it."""
        return self.modules[0]

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing."""
        return all(found.is_zero for found in self.found)

    def is_free(self, options: RewriteOptions) -> bool:
        """Whether its rank is for the policy to choose."""
        asked = options.rank_of(self.head)
        return options.selects(self.head) and asked is None and not self.is_zero

    def spectrum(self, options: RewriteOptions, least: int) -> Spectrum:
        """Return what a policy may know of it; ``least`` is a floor beside that of the options."""
        stored = [module.resized(module.r, options.dtype) for module in self.modules]
        specs = [module.parts[role].spec for module in stored for role in ("b", "a")]
        return Spectrum(
            self.head.name,
            np.sum([found.tail for found in self.found], axis=0),
            sum(module.cost for module in self.modules),
            sum(spec.nbytes for spec in specs) / sum(spec.numel for spec in specs),
            self._choices(options, least),
            self.head.groups,
        )

    def _choices(self, options: RewriteOptions, least: int) -> tuple[int, ...]:
        own, groups = self.own, self.head.groups
        asked = options.rank_of(self.head)
        if not options.selects(self.head):
            return (own,)
        if asked is not None:
            return (max(min(asked, own) // groups, 1) * groups,)
        if self.is_zero:
            return (min(options.min_rank, groups),)
        return choices(
            own,
            least=max(options.min_rank, min(least, own)),
            most=options.max_rank,
            multiple=lcm(options.multiple_of, groups),
        )


def units(source: Source, found: Sequence[Decomposition]) -> tuple[Unit, ...]:
    """Gather the modules of each owner, in the order in which owners occur."""
    owners: dict[str, list[tuple[Module, Decomposition]]] = {}
    for module, spectrum in zip(source.manifest.modules, found, strict=True):
        owners.setdefault(module.owner, []).append((module, spectrum))
    return tuple(
        Unit(
            tuple(m for m, _ in members),
            tuple(s for _, s in members),
            max(source.ranks.get(m.name, m.r) for m, _ in members),
        )
        for members in owners.values()
    )
