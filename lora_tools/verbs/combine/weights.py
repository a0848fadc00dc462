"""Weights: what the update of each adapter, and of each of its modules, is multiplied by."""

import math
from dataclasses import dataclass

from lora_tools.errors import PolicyError, some
from lora_tools.names import matches
from lora_tools.selection import Fits, ModuleWeight, check_numbers, factor


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each adapter, in order, and factors for modules; the last match wins.

    >>> weights = Weights((0.5, -1.0), (ModuleWeight("q_proj", 2.0, adapter=1),))
    >>> weights.of(1, "layers.0.q_proj"), weights.of(2, "layers.0.q_proj")
    (1.0, -1.0)
    """

    adapters: tuple[float, ...]
    modules: tuple[ModuleWeight, ...] = ()

    def __post_init__(self) -> None:
        numbers = [*self.adapters, *(each.weight for each in self.modules)]
        if strange := [number for number in numbers if not math.isfinite(number)]:
            raise PolicyError(f"{some(strange)}: no weight")
        check_numbers(self.modules, len(self.adapters))

    def of(self, adapter: int, name: str, fits: Fits = matches) -> float:
        """Return the weight of a module of the adapter with this number."""
        return self.adapters[adapter - 1] * factor(self.modules, name, adapter, fits)


def average(count: int) -> tuple[float, ...]:
    """Return equal weights that add up to 1.

    >>> average(4)
    (0.25, 0.25, 0.25, 0.25)
    """
    return (1 / count,) * count


def moving_average(decay: float, count: int) -> tuple[float, ...]:
    """Return the weights of an exponential moving average that ends with the last adapter.

    It begins with the first one; each later one counts 1 - ``decay``, and what was before it
    ``decay``. The weights add up to 1.

    >>> moving_average(0.5, 3)
    (0.25, 0.25, 0.5)
    """
    if not 0 <= decay < 1:
        raise PolicyError(f"a decay of {decay:g} is not from 0 to below 1")
    later = ((1 - decay) * decay ** (count - 1 - number) for number in range(1, count))
    return (decay ** (count - 1), *later)
