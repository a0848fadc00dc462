"""Which modules of adapters are taken, and what their updates are multiplied by."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.named_blocks import named_blocks
from lora_tools.architectures.pipelines import split
from lora_tools.errors import PolicyError, some
from lora_tools.formats.manifest import Extra, Module
from lora_tools.names import matches

ENCODERS = ("text_encoder", "lora_te")
"""How names in text encoders begin: those of a pipeline's folders, and those without their dots."""
ENCODER_BLOCK = "BASE"
"""What those who weigh the blocks of a diffusion model call its text encoders."""

Fits: TypeAlias = Callable[[str, str], bool]
"""Whether a pattern means the module of a name."""


class ModuleWeight(NamedTuple):
    """A factor for the modules that match a pattern."""

    pattern: str
    weight: float
    adapter: int | None = None
    """The number of the adapter whose modules are meant, from 1; None: of all."""


def fitting(patterns: Iterable[str], modules: Sequence[Module]) -> Fits:
    """Return what tells whether a pattern means a module: by its name, or by that of its block.

    Blocks are looked for only where a pattern is no module's name. Raises `UnsupportedError` where
    the models that the modules may be of count their blocks otherwise.
    """
    names = [module.name for module in modules]
    if all(any(matches(pattern, name) for name in names) for pattern in patterns):
        return matches
    blocks = named_blocks({module.name: Dimensions(module.out, module.inp) for module in modules})
    if blocks:
        blocks |= {name: (ENCODER_BLOCK,) for name in names if is_encoder(name)}

    def fits(pattern: str, name: str) -> bool:
        return any(matches(pattern, each) for each in (name, *blocks.get(name, ())))

    return fits


def factor(
    weights: Sequence[ModuleWeight], name: str, adapter: int | None = None, fits: Fits = matches
) -> float:
    """Return what a module of an adapter is multiplied by: of several that match, the last.

    >>> factor([ModuleWeight("q_proj", 2.0), ModuleWeight("layers.0.*", 0.0)], "layers.0.q_proj")
    0.0
    """
    found = [
        each.weight
        for each in weights
        if each.adapter in (None, adapter) and fits(each.pattern, name)
    ]
    return found[-1] if found else 1.0


def check_numbers(weights: Sequence[ModuleWeight], count: int) -> None:
    """Raise `PolicyError` for factors of adapters that there are not, of so many."""
    numbers = [each.adapter for each in weights if each.adapter is not None]
    if beyond := [number for number in numbers if not 1 <= number <= count]:
        raise PolicyError(f"there is no adapter number {some(beyond)}").hint(
            f"They are numbered from 1 to {count}, in the order given."
        )


def check_weights(weights: Sequence[ModuleWeight], adapters: Sequence[Sequence[Module]]) -> None:
    """Raise `PolicyError` for factors that mean no module of their adapters."""
    check_numbers(weights, len(adapters))
    for each in weights:
        meant = adapters if each.adapter is None else adapters[each.adapter - 1 : each.adapter]
        check_patterns([each.pattern], meant)


def check_patterns(patterns: Iterable[str], adapters: Sequence[Sequence[Module]]) -> None:
    """Raise `PolicyError` for a pattern that matches no module of any of the adapters."""
    patterns = dict.fromkeys(patterns)
    known = [(fitting(patterns, modules), modules) for modules in adapters]
    idle = [
        pattern
        for pattern in patterns
        if not any(fits(pattern, module.name) for fits, modules in known for module in modules)
    ]
    if idle:
        names = dict.fromkeys(module.name for modules in adapters for module in modules)
        raise PolicyError(f"no module matches {some(idle)}").hint(
            f"The modules are {some([*names])}."
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """What is left of adapters. The defaults leave all of them as they are."""

    only: tuple[str, ...] = ()
    """Patterns of the modules that stay; none: all."""
    drop: tuple[str, ...] = ()
    """Patterns of modules that go."""
    weights: tuple[ModuleWeight, ...] = ()
    """Factors of updates. A module at 0 goes."""
    text_encoder: bool = True
    """Whether the modules of text encoders stay."""

    def __post_init__(self) -> None:
        if strange := [each.weight for each in self.weights if not math.isfinite(each.weight)]:
            raise PolicyError(f"{some(strange)}: no weight of a module")

    def of(self, modules: Sequence[Module], adapter: int | None = None) -> dict[str, float]:
        """Return what the update of each module of an adapter is multiplied by; 0 if it goes."""
        patterns = [*self.only, *self.drop, *(each.pattern for each in self.weights)]
        fits = fitting(patterns, modules)

        def weight(name: str) -> float:
            stays = not self.only or any(fits(pattern, name) for pattern in self.only)
            goes = any(fits(pattern, name) for pattern in self.drop)
            if not stays or goes or (not self.text_encoder and is_encoder(name)):
                return 0.0
            return factor(self.weights, name, adapter, fits)

        return {module.name: weight(module.name) for module in modules}

    def keeps(self, extra: Extra) -> bool:
        """Whether a tensor beside the updates stays."""
        return self.text_encoder or not is_encoder(extra.name or extra.key)

    def check(self, adapters: Sequence[Sequence[Module]]) -> None:
        """Raise `PolicyError` for what means no module of any of the adapters."""
        check_patterns([*self.only, *self.drop], adapters)
        check_weights(self.weights, adapters)
        names = [module.name for modules in adapters for module in modules]
        if not self.text_encoder and not any(map(is_encoder, names)):
            raise PolicyError("no module is in a text encoder").hint(
                f"The modules are {some(names)}."
            )


def is_encoder(name: str) -> bool:
    """Whether a name is of a text encoder.

    >>> is_encoder("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), is_encoder("unet.conv_in")
    (True, False)
    """
    return split(name)[0].startswith(ENCODERS[0]) or name.startswith(ENCODERS)
