"""What every format says of an adapter: its modules, where they belong, what else is in the file.

All of it comes from names and shapes. Nothing here reads a byte or imports torch: tensors pass
through as values whose methods are enough.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, assert_never

from lora_tools.scaling import scale
from lora_tools.storage.header import Spec

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

Role: TypeAlias = Literal["a", "b", "magnitude", "bias"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer; ``transposed`` if its weight is stored as (in, out), as GPT-2's are."""

    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedding table, stored as (vocabulary, dimension)."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of any dimension, its kernel folded into the columns of the update.

    With ``groups`` the update is a stack of one matrix per group; each sees all input channels.
    """

    channels: int
    kernel: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Experts:
    """One parameter that stacks the matrices of ``count`` experts."""

    parameter: str
    count: int


Site: TypeAlias = Linear | Embedding | Convolution | Experts


class Part(NamedTuple):
    """One tensor of a module: what the file calls it, and its element type and shape there."""

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
    stem: str
    """What the file puts before its suffixes."""
    owner: str
    """The module whose rank and alpha it has: itself, unless the base layer hands them down."""

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
    def params(self) -> int:
        """Parameters of all its tensors."""
        return sum(part.spec.numel for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
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
        """Return the module with factors of another rank, and of another element type if given."""
        if r == self.r and dtype is None:
            return self
        rank = r // self.groups
        b, a = factor_shapes(self, rank)
        shapes: dict[Role, tuple[int, ...]] = {"a": a, "b": b}
        parts = {
            role: Part(part.key, Spec(dtype or part.spec.dtype, shapes[role]))
            if role in shapes
            else part
            for role, part in self.parts.items()
        }
        return replace(self, rank=rank, parts=parts)


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
    """How configuration and tensors contradict each other; only `inspect` goes on from here."""

    @property
    def specs(self) -> dict[str, Spec]:
        """Every tensor of the file, by key."""
        parts = {part.key: part.spec for module in self.modules for part in module.parts.values()}
        return parts | {extra.key: extra.spec for extra in self.extras}


class Format(Protocol):
    """A spelling. Reading and writing are pure: names and shapes in, names and shapes out."""

    name: str
    files: tuple[str, ...]
    """File names that it is usually found under, best first."""
    config_file: str | None
    """The configuration beside the tensors, if it has one."""

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Whether tensors of these names, with this configuration, are of this format."""
        ...

    def read(
        self,
        specs: Mapping[str, Spec],
        config: Mapping[str, Any] | None,
        metadata: Mapping[str, str],
    ) -> Manifest:
        """Describe the adapter, its contradictions among the problems.

        Raises `FormatError` or `UnsupportedError` where there is nothing to describe.
        """
        ...

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules in this format: new keys, shapes and configuration."""
        ...

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make the update of a module from the file's tensors."""
        ...

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update: the inverse of `update`."""
        ...


def factor_shapes(
    module: Module, rank: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of B and A of a module as PEFT and kohya store them.

    ``rank`` stands in for the module's own.
    """
    rank, out, inp = rank or module.rank, module.out, module.inp
    match module.site:
        case Linear() | Embedding():
            return (out, rank), (rank, inp)
        case Convolution(channels=channels, kernel=kernel, groups=groups):
            ones = (1,) * len(kernel)
            return (out * groups, rank, *ones), (rank * groups, channels, *kernel)
        case Experts(count=count):
            return (out, rank * count), (rank * count, inp)
        case _:
            assert_never(module.site)


def unfold(module: Module, b: "Array", a: "Array") -> tuple["Array", "Array"]:
    """View stored B and A as matrices, (stack, out, rank) and (stack, rank, in).

    The experts' A is expert-major and their B is rank-major (peft's ParamWrapper).
    """
    rank, out, inp = module.rank, module.out, module.inp
    match module.site:
        case Linear() | Embedding():
            return b, a
        case Convolution(groups=1):
            return b.reshape(out, rank), a.reshape(rank, inp)
        case Convolution(groups=groups):
            return b.reshape(groups, out, rank), a.reshape(groups, rank, inp)
        case Experts(count=count):
            stacked = b.reshape(out, rank, count).swapaxes(0, 2).swapaxes(1, 2)
            return stacked, a.reshape(count, rank, inp)
        case _:
            assert_never(module.site)


def fold(module: Module, b: "Array", a: "Array") -> tuple["Array", "Array"]:
    """Bring matrices into the shapes in which they are stored: the inverse of `unfold`."""
    b_shape, a_shape = factor_shapes(module)
    if isinstance(module.site, Experts):
        b = b.swapaxes(1, 2).swapaxes(0, 2)
    return b.reshape(b_shape), a.reshape(a_shape)


def columns(channels: int, kernel: tuple[int, ...]) -> int:
    """Return the number of columns that a convolution's kernel folds into."""
    return channels * math.prod(kernel)
