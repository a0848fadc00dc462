"""Experts between stacks and layers of their own: what their updates are made of."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Module
from lora_tools.linalg.blocks import Rows, member, piled, stacked
from lora_tools.update import LowRank, Update, factors

Grouping: TypeAlias = Literal["split", "stacked"]
"""One layer for every expert, as files have it, or a stack, as transformers 5 has it in memory."""


class Member(NamedTuple):
    """Some rows of one update of a stack, which become a module."""

    module: Module
    """The stack, as the adapter describes it."""
    number: int
    rows: Rows
    """Those of the update that are written, or its columns where it is turned."""
    turned: bool
    """Whether the stack's update is the transpose of what is added to the weight."""

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of the adapter that it is made of."""
        return (self.module,)

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors."""
        return self.module.is_pair

    @property
    def is_moved(self) -> bool:
        """Whether its rank may be less than that of its factors: a half of a fused stack's is."""
        return True

    def update(self, adapter: Adapter, module: Module, *, on_host: bool = True) -> Update:
        """Read the update of ``module``, exactly that of the adapter."""
        low = factors(adapter.update(self.module, on_host=on_host))
        return member(low, self.number, self.rows, turned=self.turned)

    def files(self, adapter: Adapter) -> Iterator[tuple[Adapter, Module]]:
        """Yield what it is made of, and the adapter that holds it."""
        yield adapter, self.module


class Layer(NamedTuple):
    """A module that becomes some rows of one update of a stack."""

    module: Module
    number: int
    rows: Rows


class Stack(NamedTuple):
    """The layers of experts that become one stack; what is not among them adds nothing."""

    layers: tuple[Layer, ...]

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of the adapter that it is made of."""
        return tuple(layer.module for layer in self.layers)

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors."""
        return all(layer.module.is_pair for layer in self.layers)

    @property
    def is_moved(self) -> bool:
        """Whether its rank may be less than the sum of theirs: halves may share an A."""
        return True

    def update(self, adapter: Adapter, module: Module, *, on_host: bool = True) -> Update:
        """Read the layers and return the stack of their updates, exactly."""
        experts: dict[int, list[tuple[LowRank, Rows]]] = {}
        for layer in self.layers:
            low = factors(adapter.update(layer.module, on_host=on_host))
            experts.setdefault(layer.number, []).append((low, layer.rows))
        updates = {
            number: stacked([low for low, _ in parts], [rows for _, rows in parts], module.out)
            for number, parts in experts.items()
        }
        return piled(updates, module.stack)

    def files(self, adapter: Adapter) -> Iterator[tuple[Adapter, Module]]:
        """Yield what it is made of, and the adapter that holds it."""
        yield from ((adapter, layer.module) for layer in self.layers)
