"""What can be asked of an extraction, beside its policy."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lora_tools.errors import PolicyError
from lora_tools.formats.sites import Embedding
from lora_tools.linalg.krylov import Precision
from lora_tools.names import matches
from lora_tools.scaling import check_alpha
from lora_tools.verbs.extract.pairs import WeightPair
from lora_tools.verbs.extract.sites import by_token

if TYPE_CHECKING:
    from lora_tools.runtimes import Runtime

Treatment = Literal["lora", "full", "skip"]


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to extract. The defaults take every matrix and convolution, and nothing else."""

    max_rank: int = 128
    min_rank: int = 1
    multiple_of: int = 1
    include: tuple[str, ...] = ()
    """Patterns of the modules to extract; none: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of modules to leave alone."""
    embeddings: Treatment = "lora"
    """What becomes of tables and output layers whose rows are tokens."""
    small: Treatment = "skip"
    """What becomes of norms, biases and other tensors that no LoRA can hold."""
    dtype: str | None = None
    """dtype of the factors, as safetensors names it; None: that of the tuned model."""
    alpha: float | None = None
    """The alpha that is written; None: that of each module is its rank."""
    precision: Precision = field(default_factory=Precision)
    skip_bad: bool = False
    """Leave out tensors that hold NaN or Inf."""
    base_model: str | None = None
    """What the adapter calls its base."""
    nameless: frozenset[str] = frozenset()
    """Modules to leave alone, as the format that the adapter is for has no names for them."""
    runtime: "Runtime | None" = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.min_rank, self.multiple_of, self.max_rank) < 1:
            raise PolicyError("ranks are at least 1")
        if self.max_rank < self.min_rank:
            raise PolicyError(f"--max-rank {self.max_rank} is below --min-rank {self.min_rank}")
        if not 0 < self.precision.tolerance < 1:
            raise PolicyError(f"tolerance must be between 0 and 1, not {self.precision.tolerance}")
        check_alpha(self.alpha)
        if self.runtime and (self.small == "full" or self.embeddings == "full"):
            raise PolicyError(f"{self.runtime.name} loads no full weights: use skip")

    def selects(self, name: str) -> bool:
        """Whether a module is among those wanted."""
        wanted = not self.include or any(matches(pattern, name) for pattern in self.include)
        return wanted and not any(matches(pattern, name) for pattern in self.exclude)

    def treatment(self, pair: WeightPair) -> Treatment:
        """Return what becomes of a pair if it changed."""
        name = pair.place.module if pair.place else pair.name
        if not self.selects(name) or name in self.nameless:
            return "skip"
        if pair.place is None:
            return self.small
        return self.embeddings if by_token(pair.place) else "lora"

    def refused(self, pair: WeightPair) -> bool:
        """Whether the runtime does not load a LoRA on this module."""
        return bool(self.runtime and pair.place and isinstance(pair.place.site, Embedding))

    def describe(self) -> dict[str, Any]:
        """Return what results depend on, as plain data.

        The device is no part of it: a certificate holds wherever it was computed, and what one
        machine has begun another can finish.
        """
        return {
            "max_rank": self.max_rank,
            "min_rank": self.min_rank,
            "multiple_of": self.multiple_of,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "embeddings": self.embeddings,
            "small": self.small,
            "dtype": self.dtype,
            "alpha": self.alpha,
            "tolerance": self.precision.tolerance,
            "chance": self.precision.chance,
            "exact": self.precision.exact,
            "full_below": self.precision.small,
            "skip_bad": self.skip_bad,
            "base_model": self.base_model,
            "nameless": sorted(self.nameless),
            "for": self.runtime.name if self.runtime else None,
        }
