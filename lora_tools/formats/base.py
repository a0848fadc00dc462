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

Role: TypeAlias = Literal[
    "a",
    "b",
    "magnitude",
    "columns",
    "bias",
    "alpha",
    "mid",
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
    def dtype(self) -> str:
        """Element type of what makes its update: of B, where it has one."""
        parts = self.parts
        made = (part for role, part in parts.items() if role not in BESIDE)
        return (parts["b"] if "b" in parts else next(made)).spec.dtype

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors by the format."""
        return self.parts.keys() - BESIDE == {"a", "b"}

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
        """Return the module with a pair of factors of another rank, and element type if given."""
        if r == self.r and dtype is None and self.is_pair:
            return self
        rank = r // self.groups
        parts = {role: part for role, part in self.parts.items() if role in BESIDE}
        roles: tuple[Role, Role] = ("b", "a")
        for role, shape in zip(roles, factor_shapes(self, rank), strict=True):
            old = self.parts.get(role) or Part(f"{self.stem}.{role}", Spec(self.dtype, shape))
            parts[role] = Part(old.key, Spec(dtype or old.spec.dtype, shape))
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
    about: str
    """Whose spelling it is, in a few words."""
    files: tuple[str, ...]
    """File names that it is usually found under, best first; none: the file has any name."""
    config_file: str | None
    """The configuration beside the tensors, if it has one."""
    expresses: frozenset[str] | None
    """The `kinds` that it can write beside plain linear layers; None: it is only read."""
    names: Literal["any", "authors", "diffusers"]
    """Whose names it gives the modules of a denoiser: whichever, its authors' or diffusers'."""

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Whether tensors of these names, with this configuration, are of this format."""
        ...

    def read(
        self,
        specs: Mapping[str, Spec],
        config: Mapping[str, Any] | None,
        metadata: Mapping[str, str],
        scalars: Mapping[str, float],
    ) -> Manifest:
        """Describe the adapter, its contradictions among the problems.

        ``scalars`` has the values of the tensors that are single numbers, such as alphas, and
        reads each when it is asked for. Raises `FormatError` or `UnsupportedError` where there is
        nothing to describe.
        """
        ...

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules in this format: new keys, shapes and configuration.

        A module may get another alpha where the format has fewer of them than modules; whoever
        writes rescales the factors to it. Raises `UnsupportedError` for what it cannot say.
        """
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
