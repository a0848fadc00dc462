"""What can be asked of a rewrite, beside its policy."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.names import matches
from lora_tools.rewrite.source import Source
from lora_tools.scaling import alpha_at, check_alpha

if TYPE_CHECKING:
    from lora_tools.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """How to rewrite. The defaults change nothing but ranks and where the scale is kept."""

    min_rank: int = 1
    """At 0 a policy may remove modules: those that are worth less than what they cost."""
    max_rank: int | None = None
    multiple_of: int = 1
    module_ranks: tuple[tuple[str, int], ...] = ()
    """Pattern and rank, for modules whose rank is not left to the policy; the last match wins."""
    include: tuple[str, ...] = ()
    """Patterns of the modules to shrink; none: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of modules that keep their rank."""
    dtype: str | None = None
    """Dtype of the factors written, as safetensors names it; None: each keeps its own."""
    scale: Literal["fold", "keep"] = "fold"
    """Fold the scale into the factors, which every runtime reads alike, or leave it to alpha."""
    alpha: float | None = None
    """The alpha of every module that is written, without rsLoRA; None: as ``scale`` says."""
    runtime: "Runtime | None" = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.min_rank + 1, self.multiple_of, self.max_rank or 1) < 1:
            raise PolicyError("ranks are at least 1, and --min-rank at least 0")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise PolicyError(f"--max-rank {self.max_rank} is below --min-rank {self.min_rank}")
        check_alpha(self.alpha)
        if self.runtime and self.scale == "keep":
            raise PolicyError(f"{self.runtime.name} reads one scale, so it has to be folded")

    def selects(self, module: Module) -> bool:
        """Whether a module is to be shrunk at all."""
        name = module.name
        wanted = not self.include or any(matches(pattern, name) for pattern in self.include)
        return wanted and not any(matches(pattern, name) for pattern in self.exclude)

    def rank_of(self, module: Module) -> int | None:
        """Return the rank that was asked for by the module's name, or None."""
        ranks = [rank for pattern, rank in self.module_ranks if matches(pattern, module.name)]
        return ranks[-1] if ranks else None

    def target(self, module: Module, r: int, padded: int | None = None) -> Module:
        """Return how a module of rank ``r`` is written, filled up to rank ``padded`` if given."""
        target = module.resized(padded or r, self.dtype)
        if self.alpha is not None:
            return replace(target, alpha=self.alpha, rslora=False)
        if self.scale == "fold":
            return replace(target, alpha=float(target.r), rslora=False)
        return replace(target, alpha=alpha_at(module.alpha, module.r, r, rslora=module.rslora))

    def check_written(self, written: Manifest) -> None:
        """Raise `UnsupportedError` where a format has not the alpha that was asked for."""
        if self.alpha is not None and any(m.alpha != self.alpha for m in written.modules):
            raise UnsupportedError(f"{written.format} has no alpha of its own to be {self.alpha:g}")

    def check(self, adapter: Source) -> None:
        """Raise where a pattern matches nothing, or the runtime would refuse the adapter."""
        names = list(adapter)
        patterns = [*self.include, *self.exclude, *(pattern for pattern, _ in self.module_ranks)]
        idle = [pattern for pattern in patterns if not any(matches(pattern, n) for n in names)]
        if idle:
            raise PolicyError(f"{adapter.path}: no module matches {some(idle)}").hint(
                f"Its modules are {some(names)}."
            )
        if self.runtime:
            self._check_runtime(self.runtime, adapter)

    def _check_runtime(self, runtime: "Runtime", adapter: Source) -> None:
        manifest = adapter.manifest
        kinds = {extra.key: extra.kind for extra in manifest.extras} | {
            part.key: "bias" if role == "bias" else "DoRA magnitude"
            for module in manifest.modules
            for role, part in module.parts.items()
            if role in ("bias", "magnitude", "columns")
        }
        refused = [
            f"{kind}: {some([key for key, its in kinds.items() if its == kind], most=2)}"
            for kind in sorted(runtime.refuses & set(kinds.values()))
        ]
        if refused:
            error = UnsupportedError(f"{adapter.path}: {runtime.name} does not load")
            raise error.listing(refused).hint(
                "Train without them, or serve the model with the adapter merged into it."
            )
