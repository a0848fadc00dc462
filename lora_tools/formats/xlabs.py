"""XLabs' Flux LoRAs: ``double_blocks.0.processor.qkv_lora1.down.weight``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.dialects import candidates, is_named
from lora_tools.architectures.family import NATIVE
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.translation import Translated, translate
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.formats.algorithms import describe, update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.fused import FusedPart
from lora_tools.formats.keyed import rekeyed
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.plain import low_rank

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

DIALECT = "xlabs"
KEY = re.compile(
    r"(?P<key_prefix>(?:diffusion_model\.)?(?P<path>.+\.processor\.\w+))\.(?P<part>down|up)\.weight"
)
SUFFIX: dict[Role, str] = {"a": ".down.weight", "b": ".up.weight"}


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
        """Recognise the processors of a block by their names in the tables."""
        return any(map(_ours, specs))

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the original names of the modules that a processor updates.

        The queries, keys and values of a single block are part of a weight there, so that they go
        by the names of diffusers, which has them apart.
        """
        found: dict[str, dict[Role, Part]] = {}
        strange = []
        for key, spec in contents.specs.items():
            match = _ours(key)
            if match is None:
                strange.append(key)
            else:
                role: Role = "a" if match["part"] == "down" else "b"
                found.setdefault(match["key_prefix"], {})[role] = Part(key, spec)
        if strange:
            raise FormatError(f"names that are not understood: {some(strange)}")
        modules = [
            module for key_prefix, parts in found.items() for module in _modules(key_prefix, parts)
        ]
        return Manifest(self.name, tuple(modules), (), {}, contents.metadata)

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys of modules as x-flux does, with a scale of 1."""
        key_prefixes = [(module, _key_prefix(module)) for module in manifest.modules]
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


def _ours(key: str) -> re.Match[str] | None:
    match = KEY.fullmatch(key)
    return match if match and is_named(match["path"], DIALECT) else None


def _modules(key_prefix: str, parts: Mapping[Role, Part]) -> Iterator[Module]:
    """Yield the modules that a processor's pair of factors updates."""
    pair = describe(key_prefix, key_prefix, parts, None)
    path, size = key_prefix.removeprefix(NATIVE), Dimensions(pair.out, pair.inp)
    for here in candidates(DIALECT):
        family = here.family
        whole = _targets(path, size, here, "original")
        if len(whole) == 1 and whole[0].source:
            name = family.before("original") + whole[0].path
            yield replace(pair, name=name, owner=name)
            return
        for target in _targets(path, size, here, family.hub):
            name = family.before(family.hub) + target.path
            share = FusedPart(range(pair.rank), target.pieces[0].rows)
            yield replace(pair, name=name, owner=name, out=share.out, fused=share)
        if whole:
            return
    raise FormatError(f"{key_prefix}: {size.out} rows are not those of such a processor")


def _key_prefix(module: Module) -> str | None:
    """Return what x-flux calls a module of which it has all rows, or None."""
    path, size = module.name.removeprefix(NATIVE), Dimensions(module.out, module.inp)
    for here in candidates(DIALECT):
        for target in _targets(path, size, here._replace(dialect="original"), DIALECT):
            return target.path if target.source else None
    return None


def _targets(path: str, size: Dimensions, here: Candidate, dialect: str) -> tuple[Translated, ...]:
    """Return a module in another dialect, or nothing where that lacks a part of it."""
    found = translate({path: size}, here, dialect, {})
    return () if found.unmatched else found.targets
