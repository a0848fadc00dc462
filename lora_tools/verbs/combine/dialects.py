"""Adapters of one format that call the same modules by names of different tools."""

from collections.abc import Mapping, Sequence

from lora_tools.architectures.detection import detect
from lora_tools.architectures.layout import Dimensions
from lora_tools.errors import UnsupportedError
from lora_tools.rewrite.source import Source


def check_dialects(sources: Sequence[Source], names: Sequence[Mapping[str, str]]) -> None:
    """Raise `UnsupportedError` where adapters name one model's modules in different ways.

    ``names`` are those that the modules of each will have, prefixes aligned. Side by side they
    would be different modules, of which a runtime takes one.
    """
    known: dict[str, tuple[Source, frozenset[str], frozenset[str]]] = {}
    for source, renamed in zip(sources, names, strict=True):
        for family, (dialects, ours) in _dialects(source, renamed).items():
            other, before, theirs = known.setdefault(family, (source, dialects, ours))
            if not (before & dialects or theirs & ours):
                raise UnsupportedError(
                    f"{other.path} names the modules of {family} as {' or '.join(sorted(before))}"
                    f" files do, {source.path} as {' or '.join(sorted(dialects))} files do"
                ).hint("Write a format that has one of the namings: --to diffusers or comfyui.")


def dialects_of(source: Source) -> dict[str, frozenset[str]]:
    """Return the dialects that the names of each family may be in.

    kohya's files have UNets under diffusers' names and under the original ones.
    """
    names = {name: name for name in source}
    return {family: dialects for family, (dialects, _) in _dialects(source, names).items()}


def _dialects(
    source: Source, renamed: Mapping[str, str]
) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Return the dialects that the names of each family may be in, and those names."""
    sizes = {renamed[m.name]: Dimensions(m.out, m.inp) for m in source.manifest.modules}
    found: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for component in detect(sizes):
        for candidate in component.candidates:
            dialects, names = found.get(candidate.family.name, (frozenset(), frozenset()))
            found[candidate.family.name] = (
                dialects | {candidate.dialect},
                names | {*component.names},
            )
    return found
