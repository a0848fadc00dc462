"""A survey of an adapter: every spectrum, and from it every way to shrink the adapter."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm

from lora_tools.adapter import Adapter
from lora_tools.engine import Engine
from lora_tools.errors import BoundError
from lora_tools.formats.base import Manifest, Module
from lora_tools.linalg.rank import (
    Fixed,
    MaxBytes,
    MaxError,
    RankPolicy,
    Rest,
    Spectrum,
    choices,
    uniform,
)
from lora_tools.ops.shrink.options import Options
from lora_tools.ops.shrink.tasks import Decomposed, Job, Rewrite, rewrite
from lora_tools.report import Change, Report
from lora_tools.scaling import alpha_for
from lora_tools.storage.layout import Layout, layout

ATTEMPTS = 32
"""How often ranks are raised for what rounding adds to an error that was promised."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank that each module keeps, in order, and the one that all are padded to, if any."""

    kept: tuple[int, ...]
    padded: int | None = None


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A shrunk adapter, not yet computed: its layout is known, its updates come when asked for.

    Each iteration reads the factors again and computes the same changes.
    """

    source: Adapter
    manifest: Manifest
    jobs: tuple[Rewrite, ...]
    engine: Engine

    def __iter__(self) -> Iterator[Change]:
        return self.engine.map(rewrite, self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def layout(self) -> Layout:
        """Where every tensor of the file will be."""
        return layout(self.manifest.specs, self.manifest.metadata)

    def report(self, policy: str, began: float | None = None) -> Report:
        """Return the report of this shrink, with all that is known before it is computed.

        ``began`` is the `time.monotonic` from which its seconds count.
        """
        return Report(
            "shrink",
            policy=policy,
            source=str(self.source.path),
            params=(self.source.params, sum(s.numel for s in self.manifest.specs.values())),
            nbytes=(self.source.nbytes, self.layout.size),
            carried={extra.key: extra.kind for extra in self.manifest.extras},
            left_out=self.source.side_files().left_out,
            notes=self.manifest.notes,
            started=time.monotonic() if began is None else began,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """The spectra of an adapter's modules, in its own order."""

    adapter: Adapter
    options: Options
    engine: Engine
    found: tuple[Decomposed, ...]

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules, in the adapter's order."""
        return self.adapter.manifest.modules

    def shrink(self, policy: RankPolicy) -> Shrunk:
        """Return the adapter at the ranks that a policy chooses.

        An error bound holds for the factors as they will be stored: where rounding breaks it,
        ranks are raised until it is kept. Raises `BoundError` where no ranks keep a bound.
        """
        if isinstance(policy, MaxError):
            return self._within_error(policy)
        return self.at(self._ranks(policy))

    def at(self, ranks: Ranks) -> Shrunk:
        """Return the adapter at these ranks."""
        targets = tuple(
            self._target(module, r, ranks.padded)
            for module, r in zip(self.modules, ranks.kept, strict=True)
        )
        manifest = self.adapter.format.write(replace(self.adapter.manifest, modules=targets))
        jobs = tuple(
            Rewrite(Job(self.adapter, module, self.options.device), found, r, written)
            for module, found, r, written in zip(
                self.modules, self.found, ranks.kept, manifest.modules, strict=True
            )
        )
        return Shrunk(self.adapter, manifest, jobs, self.engine)

    def table(self) -> list[tuple[int, int, float]]:
        """Return (rank, size in bytes, least relative error) of uniform ranks to choose from."""
        rows = []
        top = max(module.r for module in self.modules)
        for rank in sorted({top} | {2**i for i in range(top.bit_length())}):
            try:
                ranks = self._ranks(Fixed(rank))
            except BoundError:
                continue  # a grouped convolution or --min-rank needs more
            views = zip(self._views(), ranks.kept, strict=True)
            tails = [(view.tail()[0], view.tail()[r // view.groups]) for view, r in views]
            whole, lost = (math.fsum(column) for column in zip(*tails, strict=True))
            error = math.sqrt(lost / whole) if whole else 0.0
            rows.append((rank, self.at(ranks).layout.size, error))
        return rows

    def _ranks(self, policy: RankPolicy, least: Sequence[int] | None = None) -> Ranks:
        views = self._views(least)
        consumer = self.options.consumer
        if consumer:
            padded, kept = uniform(policy, views, consumer.ranks, self._rest(views))
            return Ranks(tuple(kept), padded)
        if policy.pointwise:
            free = [view for view, fixed in zip(views, self._pinned(), strict=True) if not fixed]
            chosen = dict(zip((view.name for view in free), policy.ranks(free), strict=True))
            kept = [chosen.get(view.name, view.choices[0]) for view in views]
        else:
            kept = policy.ranks(views, self._rest(views))
            if isinstance(policy, MaxBytes):
                kept = self._refined(policy, views, kept)
        shared: dict[str, int] = {}
        for module, r in zip(self.modules, kept, strict=True):
            shared[module.owner] = max(r, shared.get(module.owner, 0))
        return Ranks(tuple(shared[module.owner] for module in self.modules))

    def _within_error(self, policy: MaxError) -> Shrunk:
        aim = policy
        least = [1] * len(self.modules)
        for _ in range(ATTEMPTS):
            result = self.at(self._ranks(aim, least))
            rows = [change.row for change in result]
            if policy.per_module:
                over = [row.error > policy.bound for row in rows]
                if not any(over):
                    return result
                least = [
                    row.rank_after + 1 if high else low
                    for row, high, low in zip(rows, over, least, strict=True)
                ]
            else:
                trial = Report("shrink", rows=rows)
                if trial.error <= policy.bound:
                    return result
                rounding = trial.error**2 - trial.optimal_error**2
                left = min(policy.bound**2 - 1.01 * rounding, 0.9999 * aim.bound**2)
                if left <= 0:
                    break
                aim = replace(policy, bound=math.sqrt(left))
        raise BoundError(
            f"max-error {policy.bound} cannot be kept: rounding to the stored type costs more"
        ).hint("Store a wider type (--dtype float32) or allow a larger error.")

    def _refined(self, policy: MaxBytes, views: Sequence[Spectrum], kept: list[int]) -> list[int]:
        """Spend what a header that is shorter than was feared leaves over."""
        header = len(self.at(Ranks(tuple(kept))).layout.header)
        rest = self._rest(views)._replace(header=header)
        again = policy.ranks(views, rest)
        fits = self.at(Ranks(tuple(again))).layout.size <= policy.count
        return again if fits else kept

    def _rest(self, views: Sequence[Spectrum]) -> Rest:
        """Return what the file will hold besides factors, with the longest header possible."""
        largest = self.at(Ranks(tuple(view.choices[-1] for view in views)))
        factors = sum(view.choices[-1] * view.cost for view in views)
        nbytes = sum(view.choices[-1] * view.cost * view.width for view in views)
        specs = largest.manifest.specs.values()
        return Rest(
            sum(spec.numel for spec in specs) - round(factors),
            sum(spec.nbytes for spec in specs) - round(nbytes),
            len(largest.layout.header),
        )

    def _views(self, least: Sequence[int] | None = None) -> list[Spectrum]:
        lows = least or [1] * len(self.modules)
        return [
            Spectrum(
                module.name,
                found.s,
                module.cost,
                self._width(module),
                self._choices(module, found, low),
                module.groups,
            )
            for module, found, low in zip(self.modules, self.found, lows, strict=True)
        ]

    def _choices(self, module: Module, found: Decomposed, least: int) -> tuple[int, ...]:
        asked = self.options.rank_of(module)
        if not self.options.selects(module):
            return (module.r,)
        if asked is not None:
            return (max(min(asked, module.r) // module.groups, 1) * module.groups,)
        if found.is_zero:
            return (choices(module.r, multiple=module.groups)[0],)
        options = self.options
        return choices(
            module.r,
            least=max(options.min_rank, min(least, module.r)),
            most=options.max_rank,
            multiple=lcm(options.multiple_of, module.groups),
        )

    def _pinned(self) -> list[bool]:
        """Return which modules' ranks are not the policy's to choose."""
        return [
            not self.options.selects(module)
            or self.options.rank_of(module) is not None
            or found.is_zero
            for module, found in zip(self.modules, self.found, strict=True)
        ]

    def _width(self, module: Module) -> float:
        """Return the bytes per parameter of a module's factors, as they will be stored."""
        target = module.resized(module.r, self.options.dtype)
        b, a = target.parts["b"].spec, target.parts["a"].spec
        return (b.nbytes + a.nbytes) / (b.numel + a.numel)

    def _target(self, module: Module, r: int, padded: int | None) -> Module:
        target = module.resized(padded or r, self.options.dtype)
        if self.options.scale == "baked":
            return replace(target, alpha=float(target.r), rslora=False)
        if r == module.r:
            return target
        return replace(target, alpha=alpha_for(module.scale, r, rslora=module.rslora))
