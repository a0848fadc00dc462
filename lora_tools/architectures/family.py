"""Families of models, and everything about one that is a fact and not a computation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from lora_tools.architectures.layout import FinePart, Role, RowLayout
from lora_tools.architectures.tables import Rule, Section, Table, sections


class ContainerPrefix(NamedTuple):
    """How a kind of file has a model: what stands before its paths, in which dialects."""

    prefix: str
    dialects: tuple[str, ...] = ("original",)
    """Those that are read there; the first is written, unless the paths are in another already."""

    @property
    def is_flat(self) -> bool:
        """Whether paths stand there with underscores for dots."""
        return self.prefix.endswith("_")


Containers: TypeAlias = Mapping[str, ContainerPrefix]

HUB = ("diffusers",)
NATIVE = "diffusion_model."
"""What stands before a diffusion model's original paths."""
DIT: Containers = MappingProxyType(
    {
        "original": ContainerPrefix(""),
        "checkpoint": ContainerPrefix("model.diffusion_model."),
        "comfyui": ContainerPrefix(NATIVE),
        "diffusers": ContainerPrefix("transformer.", HUB),
        "kohya": ContainerPrefix("lora_unet_"),
        "onetrainer": ContainerPrefix("lora_transformer_", HUB),
        "lycoris": ContainerPrefix("lycoris_", HUB),
    }
)
UNET: Containers = MappingProxyType(
    {
        **{name: way for name, way in DIT.items() if name != "onetrainer"},
        "diffusers": ContainerPrefix("unet.", HUB),
        "kohya": ContainerPrefix("lora_unet_", ("diffusers", "original")),
    }
)
MODEL: Containers = MappingProxyType({"transformers": ContainerPrefix("", ("transformers",))})
"""A model by itself, as language models are."""


class Encoder(NamedTuple):
    """A text encoder of a pipeline: which family it is, and what its tools call it."""

    family: str
    folder: str
    comfyui: str
    kohya: str
    checkpoint: tuple[str, ...] = ()
    """What stands before its paths in a single file, where that is not ComfyUI's name."""

    @property
    def native(self) -> str:
        """What stands before its paths in ComfyUI's files."""
        return f"text_encoders.{self.comfyui}.transformer."

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before its paths in any file."""
        found = (f"{self.folder}.", self.native, self.kohya, *self.checkpoint)
        return tuple(prefix for prefix in found if prefix)


class BlockNames(NamedTuple):
    """What those who weigh a family's blocks call them."""

    dialect: str
    """Whose paths they go by."""
    labels: Mapping[str, tuple[str, ...]]
    """By how the paths of a block begin, ``#`` for a number that goes into the name."""


class Tie(NamedTuple):
    """The embedding and the head that may be one tensor, by their fine paths."""

    embedding: str
    head: str
    always: bool = False
    """Whether they are one unless a configuration says otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A family of models: what its modules are called, and how they lie, in every dialect.

    The dialect ``hub`` has everything apart; each other dialect has one table, to the hub's paths.
    """

    name: str
    hub: str
    containers: Containers
    dialects: Mapping[str, Table] = field(default_factory=dict)
    modules: Table = field(default_factory=dict)
    """Modules of the hub that no other dialect's table has."""
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """How many there are of what is numbered, by fine path, in each of its models."""
    block_names: BlockNames | None = None
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Columns of fine modules in its published models, by the end of their paths."""
    named: str = ""
    """An expression for the names under which its models are published, in small letters."""
    types: tuple[str, ...] = ()
    """Its ``model_type`` in transformers, or its class in diffusers."""
    like: str = ""
    """The family that it is taken for where nothing tells them apart. All of its modules do."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """What a dialect's files call the family, as GGUF's ``general.architecture``."""
    loaders: Containers = field(default_factory=dict)
    """What else a runtime loads it by, which no file has as a rule: by runtime."""
    drops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors of a dialect that the hub does without."""
    encoders: tuple[Encoder, ...] = ()
    siblings: tuple[str, ...] = ()
    """Folders of a pipeline with further models of the family, beside the one that has its name."""
    tie: Tie | None = None

    def dialect(self, container: str, source: str = "") -> str:
        """Return the dialect that a container has the model in: the source's, if it reads that."""
        read = self.containers[container].dialects
        if source in read:
            return source
        return read[0] if read[0] in self.dialects else self.hub

    def before(self, dialect: str) -> str:
        """Return what stands before a dialect's paths in a pipeline; nothing for other models."""
        unet_or_dit = self.containers.get("diffusers", ContainerPrefix(""))
        if dialect == self.hub:
            return self.containers.get("pipeline", unet_or_dit).prefix
        return NATIVE if unet_or_dit.prefix else ""

    def rules(self, dialect: str) -> tuple[Rule, ...]:
        """Return the rules of a dialect; those of the hub say that a module is itself."""
        return _rules(self, dialect)

    def sections(self, dialect: str) -> tuple[Section, ...]:
        """Return the entries of a dialect's table; of the hub, those of all and `modules`."""
        return _sections(self, dialect)

    def role(self, template: str) -> Role:
        """Return what a fine module is, by its path with ``#`` for numbers.

        >>> from lora_tools.architectures.families import family
        >>> family("Llama").role("model.embed_tokens")
        'embedding'
        """
        return _roles(self).get(template, "linear")


@cache
def _sections(family: Family, dialect: str) -> tuple[Section, ...]:
    if dialect != family.hub:
        return tuple(sections(family.dialects[dialect]))
    coarse = (section for other in family.dialects for section in _sections(family, other))
    return (*coarse, *sections(family.modules))


@cache
def _rules(family: Family, dialect: str) -> tuple[Rule, ...]:
    found = _sections(family, dialect)
    if dialect != family.hub:
        return tuple(rule for section in found for rule in section.rules)
    return tuple(itself(path, role) for path, role in _fine(found).items())


@cache
def _roles(family: Family) -> dict[str, Role]:
    found = _fine(_sections(family, family.hub))
    return {path: role for path, role in found.items() if role is not None}


def _fine(found: Iterable[Section]) -> dict[str, Role | None]:
    """Return every fine path of sections, with its role where one gives it."""
    roles: dict[str, Role | None] = {}
    for section in found:
        for rule in section.rules:
            for part in rule.layout.parts:
                path = part.path.replace("*", "#")
                roles[path] = roles.get(path) or rule.layout.role
    return roles


def itself(path: str, role: Role | None) -> Rule:
    """Return the rule of a fine module in the hub."""
    return Rule(path, RowLayout((FinePart(path),), role=role))
