"""Names of a source as another has them: what stands before them is brought to that."""

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from lora_tools.errors import FormatError, some
from lora_tools.matching import Prefixes, Swap, align
from lora_tools.rewrite.source import Source


class Aligned(NamedTuple):
    """What the modules of a source are called elsewhere, and what changes before their names."""

    names: dict[str, str]
    swaps: tuple[Swap, ...] = ()


def aligned(source: Source, known: Collection[str]) -> Aligned:
    """Return the names of a source's modules beside names that are known already.

    Raises `FormatError` where they fit in several ways, or two would be one.
    """
    prefixes = align(list(source), known) if known else Prefixes()
    try:
        prefixes.check("its names fit those of the adapters before it")
    except FormatError as error:
        raise error.located(source.path) from error
    names = {name: prefixes(name) or name for name in source}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise FormatError(f"{source.path}: two modules would be {some(twice)}")
    return Aligned(names, prefixes.swaps(source))
