"""ComfyUI: ``diffusion_model.<path>.lora_A.weight``, in the model's original naming."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.family import NATIVE
from lora_tools.architectures.pipelines import components, encoder_of, known, split
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.formats.algorithms import update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.keyed import described, rekeyed
from lora_tools.formats.manifest import Manifest, Module, Role
from lora_tools.formats.suffixes import collect, suffix_of

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

SUFFIX: dict[Role, str] = {
    "a": ".lora_A.weight",
    "b": ".lora_B.weight",
    "bias": ".lora_B.bias",
    "alpha": ".alpha",
    "magnitude": ".dora_scale",
    "columns": ".dora_scale",
}


class ComfyUI:
    """The format that ComfyUI loads without a map of names; ai-toolkit's and OneTrainer's, too."""

    name = "comfyui"
    about = "ComfyUI, ai-toolkit, OneTrainer's ComfyUI files, Black Forest Labs' control LoRAs"
    supports: frozenset[str] | None = frozenset(
        {"convolution", "DoRA", "DoRA by column", "bias difference", "norm difference"}
    )
    container: Container = SAFETENSORS
    names: Names = "original"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise the original names of a diffusion model's modules before a suffix."""
        if config is not None and "peft_type" in config:
            return False
        key_prefixes = {key.removesuffix(suffix) for key in specs if (suffix := suffix_of(key))}
        return bool(_names(key_prefixes))

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter; a module without an alpha has a scale of 1."""
        found = collect(contents.specs)
        modules = described(found.modules, _names(found.modules).get, contents.scalars)
        return Manifest(
            self.name, modules, found.extras, {}, contents.metadata, None, tuple(_notes(modules))
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys as ComfyUI loads them for every model: with A, B, and an alpha each."""
        own = components(module.name for module in manifest.modules)
        key_prefixes = [(module, _key_prefix(module.name, own)) for module in manifest.modules]
        if unmatched := [module.name for module, key_prefix in key_prefixes if not key_prefix]:
            raise UnsupportedError(f"ComfyUI does not load these names: {some(unmatched)}")
        modules = tuple(
            rekeyed(module, str(key_prefix), SUFFIX) for module, key_prefix in key_prefixes
        )
        return replace(manifest, format=self.name, modules=modules, config={})

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        values = values_of(module, update)
        return {module.parts[role].key: value for role, value in values.items()}


def _names(key_prefixes: Collection[str]) -> dict[str, str]:
    """Return the names of modules that are in this naming."""
    found: dict[str, str] = {}
    bare: list[str] = []
    for key_prefix in key_prefixes:
        encoder = next((e for e in known().encoders if key_prefix.startswith(e.native)), None)
        if key_prefix.startswith(NATIVE):
            found[key_prefix] = key_prefix
        elif encoder is not None:
            found[key_prefix] = f"{encoder.folder}.{key_prefix.removeprefix(encoder.native)}"
        else:
            bare.append(key_prefix)
    own = components(bare)
    return found | {
        key_prefix: NATIVE + key_prefix for key_prefix in bare if own.get(key_prefix) == NATIVE[:-1]
    }


def _key_prefix(name: str, own: Mapping[str, str]) -> str | None:
    """Return what ComfyUI calls a module, or None if it would pass it over."""
    component, path = split(name)
    if NATIVE[:-1] in (component, own.get(name)):
        return NATIVE + path
    encoder = encoder_of(component, path)
    return encoder.native + path if encoder else None


def _notes(modules: Sequence[Module]) -> Iterator[str]:
    made = [module for module in modules if not module.is_pair]
    if made:
        yield f"{len(made)} modules are made of other tensors: exact LoRAs of the rank shown."
