"""XLabs' Flux LoRAs: ``double_blocks.0.processor.qkv_lora1.down.weight``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.family import NATIVE
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.formats.algorithms import describe, update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.fused import FusedPart, blocks
from lora_tools.formats.keyed import rekeyed
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.plain import low_rank

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

KEY_PREFIX = re.compile(
    r"(?:diffusion_model\.)?(?:(double)|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora(?(1)([12]))"
)
KEY = re.compile(rf"{KEY_PREFIX.pattern}\.(?P<part>down|up)\.weight")
SUFFIX: dict[Role, str] = {"a": ".down.weight", "b": ".up.weight"}
STREAMS = {"1": "img_attn", "2": "txt_attn"}


class XLabs:
    """The format of x-flux, whose scale is always 1."""

    name = "xlabs"
    about = "XLabs x-flux"
    supports: frozenset[str] | None = frozenset()
    container: Container = SAFETENSORS
    names: Names = "original"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise the processors of Flux's blocks."""
        return any(KEY.fullmatch(key) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter: stream 1 is the image's, stream 2 the text's.

        The queries, keys and values of a single block are part of a weight there, so that they go
        by the names of diffusers, which has them apart.
        """
        found: dict[str, dict[Role, Part]] = {}
        strange = []
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match is None:
                strange.append(key)
            else:
                role: Role = "a" if match["part"] == "down" else "b"
                found.setdefault(key.removesuffix(SUFFIX[role]), {})[role] = Part(key, spec)
        if strange:
            raise FormatError(f"names that are not understood: {some(strange)}")
        modules = [
            module for key_prefix, parts in found.items() for module in _modules(key_prefix, parts)
        ]
        return Manifest(self.name, tuple(modules), (), {}, contents.metadata)

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys of modules as x-flux does, with a scale of 1."""
        key_prefixes = [(module, _key_prefix(module.name)) for module in manifest.modules]
        if unmatched := [module.name for module, key_prefix in key_prefixes if not key_prefix]:
            raise UnsupportedError(f"XLabs has no processors for {some(unmatched)}").hint(
                "Convert it to another format first: lora-tools convert --to diffusers."
            )
        modules = tuple(
            replace(rekeyed(module, str(key_prefix), SUFFIX), alpha=None)
            for module, key_prefix in key_prefixes
        )
        return replace(manifest, format=self.name, modules=modules, config={})

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return low_rank(module, tensors) if module.fused else update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        return {module.parts[role].key: value for role, value in values_of(module, update).items()}


def _modules(key_prefix: str, parts: Mapping[Role, Part]) -> Iterator[Module]:
    """Yield the modules that a processor's pair of factors updates."""
    match = KEY_PREFIX.fullmatch(key_prefix)
    assert match is not None
    kind, number, what, stream = match.groups("")
    block = f"{NATIVE}{kind or 'single'}_blocks.{number}."
    if stream:
        yield describe(f"{block}{STREAMS[stream]}.{what}", key_prefix, parts, None)
    elif what == "proj":
        yield describe(f"{block}linear2", key_prefix, parts, None)
    else:
        whole = describe(f"{block}linear1", key_prefix, parts, None)
        if whole.out % 3:
            raise FormatError(
                f"{key_prefix}: {whole.out} rows are not those of queries, keys and values"
            )
        for part, rows in zip("qkv", blocks([whole.out // 3] * 3), strict=True):
            name = f"transformer.single_transformer_blocks.{number}.attn.to_{part}"
            share = FusedPart((0, whole.rank), (rows,))
            yield replace(whole, name=name, owner=name, out=share.out, fused=share)


def _key_prefix(name: str) -> str | None:
    path = name.removeprefix(NATIVE)
    if single := re.fullmatch(r"(single_blocks\.\d+)\.linear2", path):
        return f"{single[1]}.processor.proj_lora"
    match = re.fullmatch(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)", path)
    if match is None:
        return None
    return f"{match[1]}.processor.{match[3]}_lora{1 if match[2] == 'img' else 2}"
