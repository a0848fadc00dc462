"""What every format says of an adapter: its modules, where they belong, what else is in the file.

All of it comes from names and shapes. Nothing here reads a byte or imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias, assert_never

from lora_tools.files.header import Spec
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.fused import Fused, FusedPart
from lora_tools.formats.rotary import Paired
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site
from lora_tools.scaling import scale

Role: TypeAlias = Literal[
    "a",
    "b",
    "magnitude",
    "columns",
    "bias",
    "alpha",
    "mid",
    "lora_E",
    "diff",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
]
"""What a tensor is to its module; those after ``mid`` make an update that is no pair of factors."""

BESIDE: frozenset[Role] = frozenset({"magnitude", "columns", "bias", "alpha"})
"""What a module may have besides its factors: DoRA's norms, of rows or of columns, and more."""


class Part(NamedTuple):
    """One tensor of a module: what the file calls it, and its dtype and shape there."""

    key: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted module, as its tensors' names and shapes describe it."""

    name: str
    """Path in the base model; for experts it ends with the parameter's name."""
    site: Site
    out: int
    """Rows of one update of the stack."""
    inp: int
    """Columns of one update of the stack."""
    rank: int
    """Rank of one update of the stack."""
    alpha: float | None
    rslora: bool
    parts: Mapping[Role, Part]
    key_prefix: str
    """What the file puts before its suffixes."""
    owner: str
    """The module whose rank and alpha it has: itself, unless the base layer hands them down."""
    rows: Paired | None = None
    """The order of B's rows in the file, where it is not that of transformers' weight."""
    fused: Fused | None = None
    """How its factors come out of the file's tensors, where those are of a fused layer."""

    @property
    def stack(self) -> int:
        """How many updates the module stacks: experts or groups, else 1."""
        match self.site:
            case Experts(count=count) | Convolution(groups=count):
                return count
            case Linear() | Embedding():
                return 1
            case _:
                assert_never(self.site)

    @property
    def groups(self) -> int:
        """How many updates of the stack share the rank that alpha is divided by."""
        return self.site.groups if isinstance(self.site, Convolution) else 1

    @property
    def r(self) -> int:
        """The rank as configurations count it, which is what alpha is divided by."""
        return self.rank * self.groups

    @property
    def scale(self) -> float:
        """The factor of ``b @ a``."""
        return scale(self.alpha, self.r, rslora=self.rslora)

    @property
    def cost(self) -> int:
        """Parameters per unit of ``r``."""
        return self.stack * (self.out + self.inp) // self.groups

    @property
    def is_dora(self) -> bool:
        """Whether it has a DoRA magnitude, per output or per input."""
        return not self.parts.keys().isdisjoint(("magnitude", "columns"))

    @property
    def dtype(self) -> str:
        """Dtype of what makes its update: of B, where it has one."""
        parts = self.parts
        made = (part for role, part in parts.items() if role not in BESIDE)
        return (parts["b"] if "b" in parts else next(made)).spec.dtype

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors by the format."""
        return self.fused is None and self.parts.keys() - BESIDE == {"a", "b"}

    @property
    def params(self) -> int:
        """Parameters of all its tensors; of shared ones, those that are its own."""
        if isinstance(self.fused, FusedPart):
            return self.rank * (self.out + self.inp)
        return sum(part.spec.numel for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors; of shared ones, those that are its own."""
        if isinstance(self.fused, FusedPart):
            whole = sum(part.spec.numel for part in self.parts.values())
            return sum(p.spec.nbytes for p in self.parts.values()) * self.params // whole
        return sum(part.spec.nbytes for part in self.parts.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base weight (of experts as the update has it, so perhaps swapped)."""
        match self.site:
            case Linear(transposed=False):
                return (self.out, self.inp)
            case Linear() | Embedding():
                return (self.inp, self.out)
            case Convolution(channels=channels, kernel=kernel, groups=groups):
                return (self.out * groups, channels // groups, *kernel)
            case Experts(count=count):
                return (count, self.out, self.inp)
            case _:
                assert_never(self.site)

    def resized(self, r: int, dtype: str | None = None) -> "Module":
        """Return the module with a pair of factors of another rank, and dtype if given."""
        if r == self.r and dtype is None and self.is_pair:
            return self
        rank = r // self.groups
        parts = {role: part for role, part in self.parts.items() if role in BESIDE}
        roles: tuple[Role, Role] = ("b", "a")
        for role, shape in zip(roles, factor_shapes(self, rank), strict=True):
            old = self.parts.get(role) or Part(f"{self.key_prefix}.{role}", Spec(self.dtype, shape))
            parts[role] = Part(old.key, Spec(dtype or old.spec.dtype, shape))
        return replace(self, rank=rank, parts=parts, fused=None)


MISFIT = "not understood"
"""The kind of a tensor that should belong to a module and does not."""


class Extra(NamedTuple):
    """A tensor that is not part of a low-rank update, and what it is."""

    key: str
    spec: Spec
    kind: str
    name: str = ""
    """The tensor of the base that it replaces, wholly or in some rows; "" if it is its key."""
    rows: tuple[int, ...] | None = None
    """The rows of that tensor which it holds; None: all."""
    stored: str = ""
    """What the file that it is read from calls it; "": the same."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that an adapter file holds, from its header and configuration alone."""

    format: str
    modules: tuple[Module, ...]
    extras: tuple[Extra, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """The configuration as it was read, unknown keys and all."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header's metadata."""
    base_model: str | None = None
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    problems: tuple[str, ...] = ()
    """How configuration and tensors contradict each other; only `inspect` shows such a file."""
    base: Mapping[str, Any] | None = None
    """The base model's configuration, if it is given: what a format that is written may need."""
    changed: bool = False
    """Whether it has other modules than those that its configuration was written for."""

    @property
    def specs(self) -> dict[str, Spec]:
        """Every tensor of the file, by key."""
        parts = {part.key: part.spec for module in self.modules for part in module.parts.values()}
        return parts | {extra.key: extra.spec for extra in self.extras}
