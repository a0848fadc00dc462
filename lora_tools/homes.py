"""Homes: the base weight that each module of an adapter is added to, or why it has none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_tools.errors import FormatError, some
from lora_tools.formats.base import Embedding, Experts, Linear, Module
from lora_tools.names import Prefix, align
from lora_tools.storage.header import Spec

ATTENTION = "in_proj_weight"
"""What `torch.nn.MultiheadAttention` calls the weight that its q, k and v share."""


class Home(NamedTuple):
    """A base weight, and whether it holds the update's transpose."""

    key: str
    spec: Spec
    transposed: bool


class Homes(NamedTuple):
    """Where the modules of an adapter belong in a base."""

    found: Mapping[str, Home]
    """By module."""
    missing: tuple[str, ...]
    """Modules whose weight the base does not have."""
    misshapen: Mapping[str, Home]
    """Modules whose weight has another shape than the update."""


def homes(modules: Sequence[Module], specs: Mapping[str, Spec]) -> Homes:
    """Find the base weight of each module, whatever prefix stands before either's names.

    Raises `FormatError` if the modules fit in several places equally well.
    """
    wanted = [_weight(module) for module in modules]
    attention = [f"{module.name}.{ATTENTION}" for module in modules]
    prefixes = align([*wanted, *attention], specs.keys())
    if len(prefixes) > 1:
        places = some(prefix.add or "the top" for prefix in prefixes)
        raise FormatError(f"the adapter fits the base in several places: {places}")
    prefix = prefixes[0] if prefixes else Prefix()
    found: dict[str, Home] = {}
    misshapen: dict[str, Home] = {}
    for module, names in zip(modules, zip(wanted, attention, strict=True), strict=True):
        key = next((key for name in names if (key := prefix(name)) in specs), None)
        if key is None:
            continue
        spec = specs[key]
        transposed = _transposed(module, spec.shape)
        if transposed is None:
            misshapen[module.name] = Home(key, spec, False)
        else:
            found[module.name] = Home(key, spec, transposed)
    placed = found.keys() | misshapen.keys()
    missing = tuple(module.name for module in modules if module.name not in placed)
    return Homes(found, missing, misshapen)


def _weight(module: Module) -> str:
    return module.name if isinstance(module.site, Experts) else f"{module.name}.weight"


def _transposed(module: Module, shape: tuple[int, ...]) -> bool | None:
    """Whether a weight of this shape holds the update's transpose; None if it holds neither."""
    if isinstance(module.site, Experts):
        straight = (module.site.count, module.out, module.inp)
        swapped = (module.site.count, module.inp, module.out)
        return shape != straight if shape in (straight, swapped) else None
    if shape != module.shape:
        return None
    match module.site:
        case Embedding():
            return True
        case Linear(transposed=transposed):
            return transposed
        case _:
            return False
