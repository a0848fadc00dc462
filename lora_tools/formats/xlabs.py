"""XLabs' Flux LoRAs: ``double_blocks.0.processor.qkv_lora1.down.weight``."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.formats.algorithms import describe, update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.spelled import respelled
from lora_tools.storage.container import SAFETENSORS, Container
from lora_tools.storage.header import Spec

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

KEY = re.compile(
    r"(?:diffusion_model\.)?(?P<block>(?:double|single)_blocks\.\d+)\.processor\."
    r"(?P<what>qkv|proj)_lora(?P<stream>[12]?)\.(?P<part>down|up)\.weight"
)
NATIVE = "diffusion_model."
SUFFIX: dict[Role, str] = {"a": ".down.weight", "b": ".up.weight"}
STREAMS = {"1": "img_attn", "2": "txt_attn"}


class XLabs:
    """The format of x-flux, whose scale is always 1."""

    name = "xlabs"
    about = "XLabs x-flux"
    expresses: frozenset[str] | None = frozenset()
    container: Container = SAFETENSORS
    names: Names = "authors"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise the processors of Flux's blocks."""
        return any(KEY.fullmatch(key) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter: stream 1 is the image's, stream 2 the text's.

        Raises `UnsupportedError` for single blocks, whose factors cover a part of a weight.
        """
        found: dict[tuple[str, str], dict[Role, Part]] = {}
        strange, single = [], []
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match is None:
                strange.append(key)
            elif not match["stream"]:
                single.append(key)
            else:
                name = f"{NATIVE}{match['block']}.{STREAMS[match['stream']]}.{match['what']}"
                role: Role = "a" if match["part"] == "down" else "b"
                stem = key.removesuffix(SUFFIX[role])
                found.setdefault((name, stem), {})[role] = Part(key, spec)
        if strange:
            raise FormatError(f"names that are not understood: {some(strange)}")
        if single:
            raise UnsupportedError(
                f"factors that cover a part of a single block's weight: {some(single)}"
            )
        modules = tuple(describe(name, stem, parts, None) for (name, stem), parts in found.items())
        return Manifest(self.name, modules, (), {}, contents.metadata)

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules as x-flux does, with a scale of 1."""
        stems = [(module, _stem(module.name)) for module in manifest.modules]
        if homeless := [module.name for module, stem in stems if not stem]:
            raise UnsupportedError(f"XLabs has no processors for {some(homeless)}")
        modules = tuple(
            replace(respelled(module, str(stem), SUFFIX), alpha=None) for module, stem in stems
        )
        return replace(manifest, format=self.name, modules=modules, config={})

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        return {module.parts[role].key: value for role, value in values_of(module, update).items()}


def _stem(name: str) -> str | None:
    path = name.removeprefix(NATIVE)
    match = re.fullmatch(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)", path)
    if match is None:
        return None
    return f"{match[1]}.processor.{match[3]}_lora{1 if match[2] == 'img' else 2}"
