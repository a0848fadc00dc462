"""Pairs: which module of one adapter is which of the other, and which has no partner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Extra, Module
from lora_tools.formats.rotary import Paired
from lora_tools.matching import Prefixes, Swap, align

Thing: TypeAlias = Module | Extra


@dataclass(frozen=True, slots=True)
class Side:
    """One adapter's module or other tensor."""

    adapter: Adapter
    thing: Thing
    device: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: the thing is found again by its name."""
        return _side, (self.adapter, isinstance(self.thing, Module), self.name, self.device)

    @property
    def name(self) -> str:
        """The module's name, or the tensor's."""
        return self.thing.name if isinstance(self.thing, Module) else self.thing.key


def _side(adapter: Adapter, is_module: bool, name: str, device: str) -> Side:
    extras = adapter.manifest.extras
    thing = adapter.module(name) if is_module else next(e for e in extras if e.key == name)
    return Side(adapter, thing, device)


@dataclass(frozen=True, slots=True)
class DiffJob:
    """What to compare: the same thing of both adapters, or a thing that only one has."""

    a: Side | None
    b: Side | None

    @property
    def names(self) -> tuple[str, ...]:
        """What the adapters call it."""
        return tuple(side.name for side in (self.a, self.b) if side)


def pair(a: Adapter, b: Adapter, device: str) -> tuple[list[DiffJob], tuple[Swap, ...]]:
    """Pair modules and other tensors by name: A's in order, then what only B has.

    Returns what changes before the names, too: each component may have its own prefix. Raises
    `FormatError` if they fit in several ways, and `UnsupportedError` if their rows cannot be
    brought into one order.
    """
    jobs: list[DiffJob] = []
    swaps: list[Swap] = []
    for things_a, things_b in (
        (a.manifest.modules, b.manifest.modules),
        (a.manifest.extras, b.manifest.extras),
    ):
        sides_a = {side.name: side for side in (Side(a, thing, device) for thing in things_a)}
        sides_b = {side.name: side for side in (Side(b, thing, device) for thing in things_b)}
        prefix = _prefixes(list(sides_a), list(sides_b))
        swaps += prefix.swaps(sides_a)
        pairs = [
            DiffJob(side, sides_b.pop(prefix(name) or "", None)) for name, side in sides_a.items()
        ]
        jobs += [*pairs, *(DiffJob(None, side) for side in sides_b.values())]
    if not all(_in_one_order(job) for job in jobs):
        a.check_order()
        b.check_order()
    return jobs, tuple(swaps)


def notes(a: Adapter, b: Adapter, skipped: int, swaps: Sequence[Swap] = ()) -> tuple[str, ...]:
    """Return what a person should know of the comparison, a sentence each."""
    return (*_notes(a, b, skipped), *(swap.sentence("A", "B") for swap in swaps))


def _in_one_order(job: DiffJob) -> bool:
    """Whether the rows of both sides are in a known order, or in the same unknown one."""
    modules = [side.thing for side in (job.a, job.b) if side and isinstance(side.thing, Module)]
    unknown = [module.rows == Paired(None) for module in modules]
    return all(unknown) or not any(unknown)


def _notes(a: Adapter, b: Adapter, skipped: int) -> Iterator[str]:
    if a.base_model != b.base_model:
        bases = " and ".join(adapter.base_model or "an unnamed model" for adapter in (a, b))
        yield f"The configurations name different base models: {bases}."
    if any("magnitude" in m.parts for x in (a, b) for m in x.manifest.modules):
        yield (
            "DoRA: ΔW is the low-rank direction, before the base weight and the magnitude vector"
            " normalise it; the magnitudes are compared on their own."
        )
    if skipped:
        yield f"{skipped} modules or tensors were left out by the patterns."


def _prefixes(names: Sequence[str], others: Sequence[str]) -> Prefixes:
    """Return what stands before one side's names and not before the other's."""
    return align(names, others).check("the names of one adapter fit the other's")
