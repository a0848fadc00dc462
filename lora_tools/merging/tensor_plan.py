"""Entries: what one tensor of the merged model is made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_tools.adapter import Adapter
from lora_tools.architectures.rows import count
from lora_tools.base import Weight
from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.files.place import Place
from lora_tools.formats.manifest import Extra, Module
from lora_tools.formats.sites import Convolution
from lora_tools.matching import Piece

if TYPE_CHECKING:
    from lora_tools.update import Array

Outcome = Literal["merged", "replaced", "cast", "copied"]


@dataclass(frozen=True, slots=True)
class Patch:
    """A low-rank update of some rows of a weight; or, with ``bias``, the bias that goes with it."""

    adapter: Adapter
    module: Module
    piece: Piece
    weight: float
    """The strength that was asked for, beside the module's own scale."""
    bias: bool = False

    @property
    def stop(self) -> int:
        """The row of the weight after the last one that is changed."""
        return self.piece.start + count(self.piece.rows)

    @property
    def width(self) -> int:
        """The columns of the weight."""
        module = self.module
        if self.bias:
            return 1
        if isinstance(module.site, Convolution):
            return module.inp // module.site.groups
        return module.out if self.piece.transposed else module.inp

    @property
    def dora(self) -> bool:
        """Whether the merged rows are normalised, so that nothing else can be added to them."""
        return "magnitude" in self.module.parts and not self.bias


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows of a tensor that an adapter replaces."""

    adapter: Adapter
    extra: Extra

    @property
    def rows(self) -> tuple[int, ...]:
        """Which rows."""
        return self.extra.rows or ()


@dataclass(frozen=True, slots=True)
class BaseValues:
    """The values that a tensor has before anything is added to them."""

    weight: Weight
    adapter: Adapter | None = None
    """The adapter whose tensor it is; None: the base."""

    @property
    def values(self) -> "Place | Array":
        """Where the first part of the weight lies; a pickle's is in memory."""
        return self.weight.values[0]

    @property
    def spec(self) -> Spec:
        """The shape of the weight, and the type that its first part is stored in."""
        return self.weight.spec


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the merged model."""

    key: str
    spec: Spec
    source: BaseValues
    patches: tuple[Patch, ...] = ()
    tokens: tuple[Tokens, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """What becomes of it, in a word."""
        if self.patches or self.tokens:
            return "merged"
        if self.source.adapter:
            return "replaced"
        return "copied" if self.plain else "cast"

    @property
    def plain(self) -> bool:
        """Whether its bytes are those of its source."""
        changed = self.patches or self.tokens or not self.source.weight.whole
        return not changed and self.spec == self.source.spec

    @property
    def files(self) -> set[Location]:
        """The files of the base that it is read from."""
        return set() if self.source.adapter else self.source.weight.files

    @property
    def table(self) -> tuple[int, int]:
        """Rows and columns of the matrix that patches are added to."""
        width = self.patches[0].width if self.patches else 0
        if not width:
            width = math.prod(self.spec.shape[1:])
        return (self.spec.numel // width if width else 0), width

    @property
    def modules(self) -> Mapping[str, float]:
        """The modules added to it, and their scales with the strength that was asked for."""
        return {patch.module.name: patch.module.scale * patch.weight for patch in self.patches}
