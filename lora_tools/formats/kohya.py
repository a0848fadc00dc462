"""kohya's sd-scripts and LyCORIS: ``lora_unet_<path without dots>.lora_down.weight``."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.detection import NO_HINTS, Component, Hints, detect
from lora_tools.architectures.family import NATIVE, Encoder
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.pipelines import components, encoder_of, known, split, trainers
from lora_tools.errors import CheckpointError, FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.files.objects import json_object
from lora_tools.files.stamp import BLANK
from lora_tools.files.typed import Fields
from lora_tools.formats.algorithms import update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import is_blind
from lora_tools.formats.keyed import described, rekeyed
from lora_tools.formats.manifest import Manifest, Module, Role
from lora_tools.formats.suffixes import collect, suffix_of

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

UNET, LYCORIS = "lora_unet_", "lycoris_"
"""What stands before the flattened paths of a UNet or DiT: sd-scripts', and LyCORIS' own."""

SUFFIX: dict[Role, str] = {
    "a": ".lora_down.weight",
    "b": ".lora_up.weight",
    "alpha": ".alpha",
    "magnitude": ".dora_scale",
    "columns": ".dora_scale",
}

BASES = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
"""Fields of the header that name the base model."""

NAMES = "lora_tools.names"
"""Our field of the header: the paths of modules whose dots could not be told otherwise."""


class Kohya:
    """The format of sd-scripts, LyCORIS and OneTrainer, for every model that they name."""

    name = "kohya"
    about = "kohya sd-scripts, LyCORIS, OneTrainer"
    supports: frozenset[str] | None = frozenset(
        {"convolution", "DoRA", "DoRA by column", "bias difference", "norm difference"}
    )
    container: Container = SAFETENSORS
    names: Names = "trainers"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise kohya by its prefixes before a path without dots."""
        return any(
            _is_flat(key.removesuffix(suffix)) for key in specs if (suffix := suffix_of(key))
        )

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter: LoRA, LoCon, LoHa, LoKr and full-rank diffs, with DoRA or not.

        A path is un-flattened where it is one of a known model, or where our own header says it;
        others keep their flattened name.
        """
        found = collect(contents.specs)
        stated = _stated(contents.metadata)
        stated_base = (contents.metadata.get(field) for field in BASES)
        names, guesses = _names(found.modules, Hints.of(contents.base, *stated_base))
        modules = described(
            found.modules,
            lambda key_prefix: stated.get(key_prefix) or names.get(key_prefix),
            contents.scalars,
        )
        base = contents.metadata.get("ss_sd_model_name") or contents.metadata.get(
            "ss_base_model_version"
        )
        return Manifest(
            self.name,
            modules,
            found.extras,
            {},
            contents.metadata,
            base,
            (*_notes(modules), *guesses),
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys as sd-scripts does, each with its alpha, and bring ``ss_*`` up to date."""
        prefixes = _prefixes({m.name: Dimensions(m.out, m.inp) for m in manifest.modules})
        modules = tuple(_rekeyed(module, prefixes[module.name]) for module in manifest.modules)
        key_prefixes = Counter(module.key_prefix for module in modules)
        if twice := [module.name for module in modules if key_prefixes[module.key_prefix] > 1]:
            raise UnsupportedError(f"these names are the same without dots: {some(twice)}")
        return replace(
            manifest,
            format=self.name,
            modules=modules,
            config={},
            metadata=_metadata(manifest.metadata, modules),
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        values = values_of(module, update)
        return {module.parts[role].key: value for role, value in values.items()}


def _names(
    key_prefixes: Collection[str], hints: Hints = NO_HINTS
) -> tuple[dict[str, str], list[str]]:
    """Return the names of modules, decided for all at once, and which models are only guessed.

    What no known model has stays as it is.
    """
    flat = [key_prefix for key_prefix in key_prefixes if _is_flat(key_prefix)]
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


def _rekeyed(module: Module, prefix: str) -> Module:
    key_prefix = module.key_prefix
    if not _is_flat(key_prefix):
        key_prefix = prefix + _flat(split(module.name)[1])
    return rekeyed(module, key_prefix, SUFFIX)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _is_flat(key_prefix: str) -> bool:
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
            dotted.setdefault(_flat(each), set()).add(each)
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


def _prefixes(sizes: Mapping[str, Dimensions]) -> dict[str, str]:
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


def _stated(metadata: Mapping[str, str]) -> dict[str, str]:
    where = f"the header's {NAMES}"
    fields = Fields(where, json_object(metadata.get(NAMES, "{}"), where, FormatError))
    stated = ((key_prefix, fields.text(key_prefix) or "") for key_prefix in fields.values)
    return {
        key_prefix: path for key_prefix, path in stated if path and key_prefix.endswith(_flat(path))
    }


def _metadata(metadata: Mapping[str, str], modules: tuple[Module, ...]) -> dict[str, str]:
    """Return the header for modules as they are: no other rank, and room for their own hashes."""
    kept = {key: value for key, value in metadata.items() if key != NAMES}
    if any(key.startswith(("ss_", "sshs_")) for key in kept):
        kept |= BLANK
    if "ss_network_dim" in kept or "ss_network_module" in kept:
        ranks = {module.r for module in modules}
        alphas = {module.alpha if module.alpha is not None else module.r for module in modules}
        kept["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
        kept["ss_network_alpha"] = str(alphas.pop()) if len(alphas) == 1 else "Dynamic"
    if "ss_network_args" in kept:
        kept["ss_network_args"] = _arguments(kept["ss_network_args"])
    names, _ = _names([module.key_prefix for module in modules])
    lost = {
        m.key_prefix: m.name
        for m in modules
        if m.name not in (m.key_prefix, names.get(m.key_prefix))
    }
    if lost:
        kept[NAMES] = json.dumps(lost, ensure_ascii=False)
    return kept


def _arguments(text: str) -> str:
    """Return the header's arguments with the algorithm that is written: pairs of factors."""
    try:
        arguments = json_object(text, "ss_network_args")
    except CheckpointError:
        return text  # a note of the training, which nothing depends on
    if arguments.get("algo") in (None, "lora", "locon"):
        return text
    return json.dumps(arguments | {"algo": "locon"})


def _notes(modules: Sequence[Module]) -> Iterator[str]:
    for role, what in (("hada_w1_a", "LoHa"), ("diff", "full-rank diffs")):
        if count := sum(role in module.parts for module in modules):
            yield f"{count} modules are {what}: exact LoRAs of the rank that is shown."
    if count := sum(bool({"lokr_w1", "lokr_w1_a"} & m.parts.keys()) for m in modules):
        yield f"{count} modules are LoKr: exact LoRAs of the rank that is shown."
    flat = [module.name for module in modules if module.name == module.key_prefix]
    if flat:
        yield (
            f"{len(flat)} names are of no known model, so their dots are not known: {some(flat, 2)}"
        )
    blind = [m.name for m in modules if not m.is_pair and is_blind(m)]
    if blind:
        yield f"{len(blind)} convolutions do not say their kernel: {some(blind, 2)}"
