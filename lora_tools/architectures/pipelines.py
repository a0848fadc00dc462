"""Which model of a pipeline modules are of: by what stands before their paths, or by the paths."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from lora_tools.architectures.detection import Component, detect
from lora_tools.architectures.family import NATIVE, Encoder, Family
from lora_tools.architectures.index import Candidate, everywhere
from lora_tools.architectures.layout import Dimensions
from lora_tools.errors import UnsupportedError


class Known(NamedTuple):
    """What the families say of the names of pipelines."""

    families: tuple[Family, ...]
    words: frozenset[str]
    """Models of a pipeline, by their folders."""
    flat: Mapping[str, str]
    """What stands before paths whose dots were lost, and the component, if it means one."""
    encoders: tuple[Encoder, ...]
    """Those of the pipeline that has the most, after which tools call the others' alike."""
    stored: Mapping[str, str]
    """What stands before a text encoder's paths among other models', and its folder."""


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
    flat = tuple(known().flat)
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
    words |= {folder for family in FAMILIES for folder in family.siblings}
    words |= {encoder.folder for family in FAMILIES for encoder in family.encoders}
    encoders = max((family.encoders for family in FAMILIES), key=len)
    flat = _flat(FAMILIES)
    flat |= {e.kohya: e.folder for family in FAMILIES for e in (*family.encoders, *encoders)}
    every = [*(e for family in FAMILIES for e in family.encoders), *encoders]  # the last ones count
    stored = {
        prefix: each.folder
        for each in every
        for prefix in (*each.checkpoint, each.native, f"{each.folder}.")
    }
    return Known(FAMILIES, frozenset({*words, NATIVE[:-1]}), flat, encoders, stored)


def _flat(families: tuple[Family, ...]) -> dict[str, str]:
    """Return the components of diffusion models; "" for a prefix that several families have."""
    found: dict[str, set[str]] = {}
    for family in families:
        for container in family.containers.values():
            if container.is_flat:
                words = (family.before(dialect)[:-1] for dialect in container.dialects)
                found.setdefault(container.prefix, set()).update(words)
    return {prefix: words.pop() if len(words) == 1 else "" for prefix, words in found.items()}


def trainers(*, several: bool) -> dict[str, str]:
    """Return what trainers put before flattened paths, by component, as the most pipelines have it.

    ``several``: the pipeline has several text encoders, which are numbered.

    >>> trainers(several=False)["text_encoder"], trainers(several=True)["text_encoder"]
    ('lora_te_', 'lora_te1_')
    """
    counts = Counter(
        (encoder.folder, encoder.kohya)
        for family in known().families
        if (len(family.encoders) > 1) is several
        for encoder in family.encoders
    )
    models = {family.before(family.hub)[:-1] for family in known().families} - {""}
    usual = {word: prefix for prefix, word in known().flat.items() if word in models}
    return usual | {folder: prefix for (folder, prefix), _ in reversed(counts.most_common())}


def encoder_of(component: str, path: str) -> Encoder | None:
    """Return which text encoder a path of a component is of, as tools call it for most pipelines.

    Its family says it, whichever place it has in its own pipeline, and of several of one family
    the place. None for paths that no such tool has.

    >>> encoder_of("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q").comfyui
    't5xxl'
    """
    if component not in {encoder.folder for encoder in known().encoders}:
        return None
    whole = {candidate.family.name for candidate, _ in everywhere(path, known().families)}
    fitting = [
        encoder
        for encoder in known().encoders
        if path.partition(".")[0] in first_words(*_hub(encoder))
        and (not whole or encoder.family in whole)
    ]
    own = (encoder for encoder in fitting if encoder.folder == component)
    return next(own, fitting[0] if len(fitting) == 1 else None)


def encoder_behind(component: Component) -> str | None:
    """Return the folder of the text encoder that a component is, if its prefix says that it is one.

    Behind the folder's own name only where pipelines have the family in its hub's paths.
    """
    folder = known().stored.get(component.prefix)
    if folder is None or not component.candidates:
        return None
    own = "pipeline" in component.candidates[0].family.containers
    return folder if own or component.prefix != f"{folder}." else None


def _hub(encoder: Encoder) -> tuple[Family, str]:
    (family,) = (family for family in known().families if family.name == encoder.family)
    return family, family.hub


@cache
def beginnings(component: str) -> tuple[str, ...]:
    """Return how paths begin of diffusion models that are this component, in diffusers' names.

    >>> "down_blocks." in beginnings("unet"), "down_blocks." in beginnings("transformer")
    (True, False)
    """
    own = (family for family in known().families if family.before(family.hub) == f"{component}.")
    return tuple({f"{word}." for family in own for word in first_words(family, family.hub)})


def loaded(runtime: str) -> Mapping[str, frozenset[str]]:
    """Return the families that a runtime loads by further names, and how their paths begin."""
    return {
        family.name: frozenset(
            word for dialect in way.dialects for word in first_words(family, dialect)
        )
        for family in known().families
        if (way := family.loaders.get(runtime))
    }


@cache
def first_words(family: Family, dialect: str) -> frozenset[str]:
    """Return how the paths of a dialect begin."""
    hub = dialect == family.hub
    paths = (path for s in family.sections(dialect) for path in (s.fine if hub else s.paths))
    return frozenset(path.partition(".")[0] for path in paths)


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
