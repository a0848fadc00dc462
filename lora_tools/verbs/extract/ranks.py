"""Choose ranks from the spectra of a survey, for every policy."""

from collections.abc import Sequence
from typing import NamedTuple

from lora_tools.errors import BoundError
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.header import Spec
from lora_tools.linalg.rank import Fixed, RankPolicy, Rest
from lora_tools.linalg.spectrum import Spectrum, choices
from lora_tools.linalg.uniform import uniform
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.tasks import ModuleSpectrum


class ChosenRanks(NamedTuple):
    """The rank of each module, and the one that all are filled up to; 0: none."""

    ranks: tuple[int, ...]
    stored: int = 0


def headroom(item: Item, rank: int) -> int:
    """Return the rank that an item can have, up to ``rank``; 1 for what no LoRA will hold."""
    place = item.pair.place
    return min(rank, place.rows, place.columns) if place and item.treatment == "lora" else 1


def fixed(plan: ExtractPlan, policy: Fixed, items: Sequence[Item]) -> ChosenRanks:
    """Return the ranks that need no spectrum."""
    ranks = tuple(headroom(item, policy.rank) for item in items)
    runtime = plan.options.runtime
    if runtime is None:
        return ChosenRanks(ranks)
    sizes = [size for size in runtime.ranks if size >= max(ranks, default=1)]
    if not sizes:
        raise BoundError(
            f"rank {policy.rank} is more than {runtime.name} allows ({max(runtime.ranks)})"
        )
    return ChosenRanks(ranks, min(sizes))


def choose(
    plan: ExtractPlan,
    policy: RankPolicy,
    items: Sequence[Item],
    found: Sequence[ModuleSpectrum],
    rest: Rest,
) -> ChosenRanks:
    """Return the ranks that a policy chooses; raise `BoundError` if none keep its bound."""
    spectra = [_view(plan, item, one) for item, one in zip(items, found, strict=True)]
    runtime = plan.options.runtime
    if runtime:
        sizes = [size for size in runtime.ranks if size <= plan.options.max_rank]
        stored, ranks = uniform(policy, spectra, sizes, rest)
        return ChosenRanks(tuple(ranks), stored)
    return ChosenRanks(tuple(policy.ranks(spectra, rest)))


def _view(plan: ExtractPlan, item: Item, found: ModuleSpectrum) -> Spectrum:
    module = plan.module(item, 1)
    spec: Spec = module.parts["b"].spec
    return Spectrum(
        item.name,
        found.tail,
        module.cost,
        DTYPES[spec.dtype].bits / 8,
        choices(
            len(found.tail) - 1,
            least=plan.options.min_rank,
            multiple=plan.options.multiple_of,
        ),
    )
