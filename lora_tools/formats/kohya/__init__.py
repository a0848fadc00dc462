"""kohya's sd-scripts and LyCORIS: ``lora_unet_<path without dots>.lora_down.weight``."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.detection import Hints
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.pipelines import split
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.formats.algorithms import update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import is_blind
from lora_tools.formats.keyed import described, rekeyed
from lora_tools.formats.kohya.header import BASES, header, stated_names
from lora_tools.formats.kohya.names import flattened, is_flat, prefixes_of, restored
from lora_tools.formats.manifest import Manifest, Module, Role
from lora_tools.formats.suffixes import collect, suffix_of

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


SUFFIX: dict[Role, str] = {
    "a": ".lora_down.weight",
    "b": ".lora_up.weight",
    "alpha": ".alpha",
    "magnitude": ".dora_scale",
    "columns": ".dora_scale",
}


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
        return any(is_flat(key.removesuffix(suffix)) for key in specs if (suffix := suffix_of(key)))

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter: LoRA, LoCon, LoHa, LoKr and full-rank diffs, with DoRA or not.

        A path is un-flattened where it is one of a known model, or where our own header says it;
        others keep their flattened name.
        """
        found = collect(contents.specs)
        stated = stated_names(contents.metadata)
        stated_base = (contents.metadata.get(field) for field in BASES)
        names, guesses = restored(found.modules, Hints.of(contents.base, *stated_base))
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
        prefixes = prefixes_of({m.name: Dimensions(m.out, m.inp) for m in manifest.modules})
        modules = tuple(_rekeyed(module, prefixes[module.name]) for module in manifest.modules)
        key_prefixes = Counter(module.key_prefix for module in modules)
        if twice := [module.name for module in modules if key_prefixes[module.key_prefix] > 1]:
            raise UnsupportedError(f"these names are the same without dots: {some(twice)}")
        return replace(
            manifest,
            format=self.name,
            modules=modules,
            config={},
            metadata=header(manifest.metadata, modules),
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        values = values_of(module, update)
        return {module.parts[role].key: value for role, value in values.items()}


def _rekeyed(module: Module, prefix: str) -> Module:
    key_prefix = module.key_prefix
    if not is_flat(key_prefix):
        key_prefix = prefix + flattened(split(module.name)[1])
    return rekeyed(module, key_prefix, SUFFIX)


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
