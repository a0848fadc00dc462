"""The spectra of an adapter: figures of each module, and what every rank would cost."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.errors import NonFiniteError, UnsupportedError
from lora_tools.executors import Executor
from lora_tools.formats.manifest import Module
from lora_tools.linalg.figures import effective_rank, pooled, stable_rank, sufficient
from lora_tools.linalg.halves import takes_back
from lora_tools.report import percent, size
from lora_tools.rewrite import RewriteOptions, Survey, UniformRank
from lora_tools.rewrite.jobs import Decomposition, RewriteJob
from lora_tools.rewrite.source import source
from lora_tools.rewrite.survey import jobs
from lora_tools.rewrite.tasks import decompose
from lora_tools.rewrite.units import units
from lora_tools.shapes import Float
from lora_tools.update import factors

SHARES = (0.9, 0.95, 0.99, 0.999)
"""Of the energy: the ranks that keep them are what people ask for."""

ENOUGH = 0.99
"""The share of the energy that a suggested rank keeps."""

DOUBLED = (
    "The rank was doubled when an initialisation that changed the base (PiSSA, OLoRA, CorDA,"
    " LoRA-GA) was converted to plain LoRA: half of each factor takes back what the other began"
    " with. `lora-tools shrink --max-error 1e-6` finds the smallest rank that keeps the update."
)


@dataclass(frozen=True, slots=True)
class SpectrumFigures:
    """The spectrum of one module in numbers."""

    module: Module
    sigma: Float[np.ndarray, " rank"] | None
    """Singular values, largest first, scale included; of a stack pooled; None: not finite."""
    sigma_max: float
    duplicate_of: str | None = None
    """A module before it with the same factors, bit for bit."""

    @property
    def state(self) -> str:
        """``finite``, ``zero`` or ``not finite``."""
        if self.sigma is None:
            return "not finite"
        return "finite" if self.sigma.any() else "zero"

    @property
    def norm(self) -> float | None:
        """``||dW||_F``, with the scale."""
        return None if self.sigma is None else float(np.linalg.norm(self.sigma))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data; what a zero or bad module has not is None."""
        s = self.sigma if self.state == "finite" else None
        ranks = [] if s is None else [k * self.module.groups for k in sufficient(s, SHARES)]
        return {
            "state": self.state,
            "norm": self.norm,
            "sigma_max": None if self.sigma is None else self.sigma_max,
            "stable_rank": None if s is None else stable_rank(s),
            "effective_rank": None if s is None else effective_rank(s),
            "energy_ranks": None if s is None else dict(zip(map(str, SHARES), ranks, strict=True)),
            "sigma": None if self.sigma is None else self.sigma.tolist(),
            "duplicate_of": self.duplicate_of,
        }


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A rank that keeps nearly all of an adapter, and the command that goes there."""

    uniform: UniformRank
    before: int
    source: str

    @property
    def arguments(self) -> str:
        """The command line."""
        out = f"{self.source.rstrip('/')}-r{self.uniform.rank_after}"
        return shlex.join(
            ["lora-tools", "shrink", self.source, out, "--rank", str(self.uniform.rank_after)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the suggestion as plain data."""
        rank, nbytes, error, _ = self.uniform
        return {
            "rank_after": rank,
            "energy": 1 - error**2,
            "optimal_error": error,
            "bytes_before": self.before,
            "bytes_after": nbytes,
            "arguments": self.arguments,
            "text": f"rank {rank} keeps {percent(1 - error**2)} of this adapter's energy:"
            f" {size(self.before)} → {size(nbytes)}, error {percent(error)}",
        }


@dataclass(frozen=True)
class Spectra:
    """The figures of every module, by name, and all that follows from them together."""

    adapter: Adapter
    figures: Mapping[str, SpectrumFigures]
    faults: tuple[str, ...]
    """What is not finite, a sentence each."""
    survey: Survey | None
    """None if not all is finite."""
    doubled: bool = False
    """Whether every module's factors take back what they began with."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know, one sentence each."""
        return (DOUBLED,) if self.doubled else ()

    @property
    def norm(self) -> float | None:
        """``||dW||_F`` of the whole adapter; None if not all of it is finite."""
        norms = [figures.norm for figures in self.figures.values()]
        return None if None in norms else math.hypot(*(norm or 0.0 for norm in norms))

    @cached_property
    def uniform_ranks(self) -> list[UniformRank]:
        """What uniform ranks would cost; nothing if the adapter cannot be shrunk as it is."""
        if not self.survey or not self.norm:
            return []
        try:
            return self.survey.table()
        except UnsupportedError:
            return []  # a format that is read and not written

    @cached_property
    def suggestion(self) -> Suggestion | None:
        """The smallest rank on offer that keeps 99 % of the energy, if that is a smaller one."""
        fit = [
            uniform for uniform in self.uniform_ranks[:-1] if 1 - uniform.optimal_error**2 >= ENOUGH
        ]
        return Suggestion(fit[0], self.adapter.nbytes, str(self.adapter.path)) if fit else None


def spectra(adapter: Adapter, executor: Executor, device: str = "cpu") -> Spectra:
    """Decompose every module of an adapter. Reads every factor once."""
    modules, of = adapter.manifest.modules, source(adapter)
    found = list(executor.map(measure, jobs(of, device)))
    finite = [result for result in found if isinstance(result, Decomposition)]
    faults = tuple(str(result) for result in found if isinstance(result, NonFiniteError))
    twins = _twins(adapter, found)
    figures = {
        module.name: SpectrumFigures(
            module, pooled(result.s), float(result.s.max()), twins.get(module.name)
        )
        if isinstance(result, Decomposition)
        else SpectrumFigures(module, None, math.nan)
        for module, result in zip(modules, found, strict=True)
    }
    whole = modules and len(finite) == len(found) and not adapter.manifest.problems
    survey = Survey(of, RewriteOptions(), executor, units(of, finite)) if whole else None
    return Spectra(adapter, figures, faults, survey, bool(whole) and _doubled(adapter))


def measure(job: RewriteJob) -> Decomposition | NonFiniteError:
    """Return a module's spectrum, or why it has none."""
    try:
        return decompose(job)
    except NonFiniteError as error:
        return error


def _doubled(adapter: Adapter) -> bool:
    """Whether all factors take back what they began with; of most adapters one module says no."""
    modules = adapter.manifest.modules
    arrays = adapter.tensors.arrays
    return all(
        module.is_pair and takes_back(factors(adapter.format.update(module, arrays)))
        for module in modules
    )


def _twins(adapter: Adapter, found: Sequence[Decomposition | NonFiniteError]) -> dict[str, str]:
    """Return the modules whose factors are those of one before them, and that one's name.

    Only factors of equal spectra are compared, so next to nothing is read for it.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for module, result in zip(adapter.manifest.modules, found, strict=True):
        if isinstance(result, Decomposition) and not result.is_zero:
            key = (module.site, module.shape, module.scale, result.s.tobytes())
            alike.setdefault(key, []).append(module.name)
    return {
        other: first
        for first, *others in alike.values()
        for other in others
        if list(_stored(adapter, first)) == list(_stored(adapter, other))
    }


def _stored(adapter: Adapter, name: str) -> Iterator[bytes]:
    for _, part in sorted(adapter.module(name).parts.items()):
        array = adapter.tensors.arrays[part.key]
        yield (array if isinstance(array, np.ndarray) else array.float().numpy()).tobytes()
