"""Paths without dots: which module a flattened name is, and what stands before it."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from lora_tools.architectures.detection import NO_HINTS, Component, Hints, detect
from lora_tools.architectures.family import NATIVE, Encoder
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.pipelines import components, encoder_of, known, split, trainers
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.manifest import Manifest

UNET, LYCORIS = "lora_unet_", "lycoris_"
"""What stands before the flattened paths of a UNet or DiT: sd-scripts', and LyCORIS' own."""


def restored(
    key_prefixes: Collection[str], hints: Hints = NO_HINTS
) -> tuple[dict[str, str], list[str]]:
    """Return the names of modules, decided for all at once, and which models are only guessed.

    What no known model has stays as it is.
    """
    flat = [key_prefix for key_prefix in key_prefixes if is_flat(key_prefix)]
    names, guesses = {key_prefix: key_prefix for key_prefix in flat}, list[str]()
    components = list(detect(dict.fromkeys(flat)))
    # Dots are not rows: what is no module of the model that the others are of may have its own.
    for component in components:
        if component.candidates and component.unmatched:
            components += detect(dict.fromkeys(component.unmatched))
    encoders = {
        encoder for c in components for other in c.candidates for encoder in other.family.encoders
    }
    for component in components:
        try:
            component = _trained(component)
            own, guess = component.decision(partial(_named, component, encoders), hints)
        except UnsupportedError:  # families that put the dots elsewhere
            continue
        names |= own
        guesses += [guess] if guess else []
    return names, guesses


def _trained(component: Component) -> Component:
    """Return the component with a family's own dialects behind this prefix, where it has some."""
    own = {
        candidate
        for candidate in component.candidates
        for container in candidate.family.containers.values()
        if container.prefix == component.prefix and candidate.dialect in container.dialects
    }
    families = {candidate.family for candidate in own}
    return component.among(lambda each: each in own or each.family not in families)


def _named(
    component: Component, encoders: Collection[Encoder], candidate: Candidate
) -> dict[str, str]:
    """Return the names behind a prefix, if they are of this family."""
    family, prefix = candidate.family, component.prefix
    word = known().flat.get(prefix) or (family.before(candidate.dialect) or NATIVE)[:-1]
    # Which encoder it is, the pipeline says: T5 is sd-scripts' third in every one.
    folders = {e.folder for e in encoders if e.kohya == prefix and e.family == family.name}
    if len(folders) == 1:
        (word,) = folders
    return {key_prefix: f"{word}.{path}" for key_prefix, path in component.paths[candidate].items()}


def flattened(path: str) -> str:
    """Return a path as kohya's files have it."""
    return path.replace(".", "_")


def is_flat(key_prefix: str) -> bool:
    """Whether a path without dots stands behind one of the trainers' prefixes."""
    return "." not in key_prefix and key_prefix.startswith(tuple(known().flat))


def unflattened(manifest: Manifest, paths: Collection[str]) -> Manifest:
    """Return a manifest with the dotted module paths that kohya flattened, from the base model.

    Raises `FormatError` where two paths of the model read the same without dots.
    """
    components, dotted = known().flat, dict[str, set[str]]()
    for path in paths:
        short = re.sub(r"^(model\.)?(diffusion_model\.)?", "", path)
        for each in {path, short}:
            dotted.setdefault(flattened(each), set()).add(each)
    modules = []
    for module in manifest.modules:
        prefix = next((p for p in components if module.name.startswith(p)), None)
        found = dotted.get(module.name.removeprefix(prefix), set()) if prefix else set()
        if len(found) > 1:
            raise FormatError(f"{module.name} may be {' or '.join(sorted(found))}")
        name = module.name
        for path in found:
            component = components[str(prefix)] or ("" if prefix == LYCORIS else NATIVE[:-1])
            name = f"{component}.{path}" if component else path
        modules.append(replace(module, name=name))
    return replace(manifest, modules=tuple(modules))


def prefixes_of(sizes: Mapping[str, Dimensions]) -> dict[str, str]:
    """Return what the trainers put before the flattened path of each module."""
    found = {name: split(name)[0] for name in sizes}
    found |= components([name for name, word in found.items() if not word], sizes)
    prefixes: dict[str, str] = {}
    folders: dict[str, str] = {}
    several = not {"text_encoder_2", "text_encoder_3"}.isdisjoint(found.values())
    for component in detect(sizes):
        try:
            prefix, encoders = component.decide(_trainers)
        except UnsupportedError:  # no known model, or several that the trainers name otherwise
            several |= any(len(each.family.encoders) > 1 for each in component.candidates)
            continue
        prefixes |= dict.fromkeys(component.names, prefix) if prefix else {}
        folders |= encoders
    usual = {"": LYCORIS, **trainers(several=several), **folders}
    return {
        name: prefixes.get(name) or _place(component, split(name)[1], usual)
        for name, component in found.items()
    }


def _place(component: str, path: str, usual: Mapping[str, str]) -> str:
    encoder = encoder_of(component, path)
    if encoder and encoder.folder != component:  # its number is the same in every pipeline
        return encoder.kohya
    return usual.get(component, UNET)


def _trainers(candidate: Candidate) -> tuple[str, dict[str, str]]:
    """Return what stands before flattened paths of a UNet or DiT and of encoders, by folder.

    A family's own trainers have one of its dialects; OneTrainer has that of diffusers, too.
    """
    family, dialect = candidate
    ways = (family.containers.get(each) for each in ("kohya", "onetrainer"))
    fitting = (
        way.prefix
        for name, way in zip(("kohya", "onetrainer"), ways, strict=True)
        if way and family.dialect(name, dialect) == dialect
    )
    return next(fitting, ""), {encoder.folder: encoder.kohya for encoder in family.encoders}
