"""Which model of a pipeline modules are of: by what stands before their paths, or by the paths."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from lora_tools.architectures.detection import detect
from lora_tools.architectures.family import NATIVE, Family
from lora_tools.architectures.index import Candidate, everywhere
from lora_tools.architectures.layout import Dimensions
from lora_tools.errors import UnsupportedError


class Known(NamedTuple):
    """What the families say of the names of pipelines."""

    families: tuple[Family, ...]
    words: frozenset[str]
    """Models of a pipeline, by their folders."""
    flat: tuple[str, ...]
    """What stands before paths whose dots were lost."""


def split(name: str) -> tuple[str, str]:
    """Return a name's component, or nothing, and its path in there.

    A component is a model of a pipeline, by its folder; ``diffusion_model`` is a diffusion model
    whose modules have their original names.

    >>> split("unet.mid_block.resnets.0.conv1"), split("model.layers.0.q_proj")
    (('unet', 'mid_block.resnets.0.conv1'), ('', 'model.layers.0.q_proj'))
    >>> split("transformer.h.0.attn.c_attn")
    ('', 'transformer.h.0.attn.c_attn')
    """
    component, dot, path = name.partition(".")
    if not dot or component not in known().words or name.startswith(_alone()):
        return "", name
    return component, path


def components(
    paths: Iterable[str], sizes: Mapping[str, Dimensions] | None = None
) -> dict[str, str]:
    """Return the components of paths that nothing stands before, where they tell: all together.

    >>> components(["double_blocks.0.img_attn.qkv", "somebodys.own"])
    {'double_blocks.0.img_attn.qkv': 'diffusion_model'}
    """
    flat = known().flat
    left = {path: None for path in paths if "." in path or not path.startswith(flat)}
    found: dict[str, str] = {}
    while left:
        strange: list[str] = []
        for component in detect({path: (sizes or {}).get(path) for path in left}):
            if component.prefix or not component.candidates:
                continue
            strange += component.unmatched
            try:
                before = component.decide(_before)
            except UnsupportedError:  # models that have it in different places
                continue
            found |= dict.fromkeys(component.names, before[:-1]) if before else {}
        left = dict.fromkeys(strange)
    return found


def is_known(path: str) -> bool:
    """Whether a path is one of a known model.

    >>> is_known("text_model.encoder.layers.0.mlp.fc1"), is_known("blocks.0.attn.Wqkv")
    (True, False)
    """
    return next(everywhere(path, known().families), None) is not None


def _before(candidate: Candidate) -> str:
    return candidate.family.before(candidate.dialect)


@cache
def known() -> Known:
    """Return what the families say, which are read when it is asked for."""
    from lora_tools.architectures.families import FAMILIES  # which most files do without

    words = {family.before(family.hub)[:-1] for family in FAMILIES} - {""}
    words |= {encoder.folder for family in FAMILIES for encoder in family.encoders}
    flat = {c.prefix for family in FAMILIES for c in family.containers.values() if c.is_flat}
    flat |= {encoder.kohya for family in FAMILIES for encoder in family.encoders}
    return Known(FAMILIES, frozenset({*words, NATIVE[:-1]}), tuple(flat))


@cache
def _alone() -> tuple[str, ...]:
    """Return how paths begin that have such a word of their own, in models of no pipeline."""
    words = tuple(f"{word}." for word in known().words)
    return tuple(
        path.partition("#")[0]
        for family in known().families
        if not family.before(family.hub)
        for dialect in (family.hub, *family.dialects)
        for section in family.sections(dialect)
        for path in (section.fine if dialect == family.hub else section.paths)
        if path.startswith(words)
    )
