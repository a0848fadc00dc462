"""A survey of an adapter: every spectrum, and from it the adapter at any ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lora_tools.errors import BoundError
from lora_tools.executors import Executor, Serial
from lora_tools.linalg.rank import (
    Fixed,
    MaxBytes,
    MaxError,
    MaxParams,
    RankPolicy,
    Rest,
)
from lora_tools.linalg.spectrum import Spectrum
from lora_tools.linalg.uniform import uniform
from lora_tools.report import Change, Report, Row
from lora_tools.rewrite.jobs import Decomposition, RewriteJob, Target
from lora_tools.rewrite.options import RewriteOptions
from lora_tools.rewrite.plan import Ranked, Rewrite, planned
from lora_tools.rewrite.rows import removed_row
from lora_tools.rewrite.source import Source
from lora_tools.rewrite.tasks import decompose, decompose_and_rewrite
from lora_tools.rewrite.units import Unit, units

ATTEMPTS = 32
"""How often ranks are raised for what rounding adds to an error that was promised."""

MOST_FINISHED = 256_000_000
"""Bytes of finished factors that a survey may keep, so that they are not computed twice."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank that each unit keeps, and the one that all are padded to, if any."""

    kept: tuple[int, ...]
    padded: int | None = None


class UniformRank(NamedTuple):
    """What a uniform rank would cost. Errors are relative, and the least possible ones."""

    rank_after: int
    bytes_after: int
    optimal_error: float
    allocated_error: float
    """With the same number of parameters, allocated among the modules as `MaxParams` does."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The spectra of an adapter, by the units that a rank can be chosen for."""

    source: Source
    options: RewriteOptions
    executor: Executor
    units: tuple[Unit, ...]
    finished: Mapping[str, tuple[Target, Change]] = field(default_factory=dict)

    def rewrite(self, policy: RankPolicy) -> Rewrite:
        """Return the adapter at the ranks that a policy chooses.

        An error bound holds for the factors as they will be stored: where rounding breaks it,
        ranks are raised until it is kept. Raises `BoundError` where no ranks keep a bound.
        """
        if not isinstance(policy, MaxError):
            return _paid(self.at(self._ranks(policy)), policy)
        return self._each_within(policy) if policy.per_module else self._within(policy)

    def at(self, ranks: Ranks) -> Rewrite:
        """Return the adapter at these ranks, without the modules of rank 0."""
        ranked, removed = list[Ranked](), list[Row]()
        for unit, r in zip(self.units, ranks.kept, strict=True):
            for module, found in zip(unit.modules, unit.found, strict=True):
                if r:
                    target = self.options.target(module, r, ranks.padded)
                    ranked.append(Ranked(module, r, target, found))
                else:
                    removed.append(removed_row(module, found))
        if not ranked:
            raise BoundError(f"{self.source.path}: no module is left").hint(
                "Ask for a smaller error, or for --min-rank 1."
            )
        source = self.source
        if removed:
            source = replace(source, manifest=replace(source.manifest, changed=True))
        plan = planned(source, ranked, self.executor, self.options, self.finished)
        return replace(plan, removed=tuple(removed))

    def table(self) -> list[UniformRank]:
        """Return what uniform ranks to choose from would cost, up to the adapter's own.

        Beside each stands what its parameters can do if they are allocated optimally.
        """
        uniform_ranks = []
        top = max(unit.head.r for unit in self.units)
        runtime = self.options.runtime
        steps = runtime.ranks if runtime else tuple(2**i for i in range(top.bit_length()))
        for rank in sorted({top} | {step for step in steps if step < top}):
            try:
                ranks = self._ranks(Fixed(rank))
            except BoundError:
                continue  # a grouped convolution or a limit needs more
            error, plan = self._error(ranks), self.at(ranks)
            params = sum(spec.numel for spec in plan.manifest.specs.values())
            allocated = error if runtime else self._error(self._ranks(MaxParams(params)))
            uniform_ranks.append(UniformRank(rank, plan.layout.size, error, min(allocated, error)))
        return uniform_ranks

    def _error(self, ranks: Ranks) -> float:
        """Return the least relative error of the whole adapter at these ranks."""
        views = self._views()
        whole = math.fsum(view.tail[0] for view in views)
        kept = zip(views, ranks.kept, strict=True)
        lost = math.fsum(view.tail[r // view.groups] for view, r in kept)
        return math.sqrt(lost / whole) if whole else 0.0

    def _ranks(self, policy: RankPolicy, least: Sequence[int] | None = None) -> Ranks:
        views = self._views(least)
        if self.options.runtime:
            sizes = [size for size in self.options.runtime.ranks if size >= max(least or [1])]
            padded, kept = uniform(policy, views, sizes, self._rest(views))
            return Ranks(tuple(kept), padded)
        if policy.pointwise:
            free = [unit.is_free(self.options) for unit in self.units]
            chosen = iter(policy.ranks([v for v, its in zip(views, free, strict=True) if its]))
            pairs = zip(views, free, strict=True)
            return Ranks(tuple(next(chosen) if its else view.choices[0] for view, its in pairs))
        kept = policy.ranks(views, self._rest(views))
        if isinstance(policy, MaxBytes):
            kept = self._refined(policy, views, kept)
        return Ranks(tuple(kept))

    def _within(self, policy: MaxError) -> Rewrite:
        """Keep a bound on the whole adapter: aim lower by what rounding was seen to add."""
        aim = policy.bound
        for _ in range(ATTEMPTS):
            result = self.at(self._ranks(MaxError(aim)))
            trial = Report("rewrite", rows=_rows(result))
            if trial.error <= policy.bound:
                return result
            rounding = trial.error**2 - trial.optimal_error**2
            left = min(policy.bound**2 - 1.01 * rounding, 0.9999 * aim**2)
            if left <= 0:
                break
            aim = math.sqrt(left)
        raise _lost_to_rounding(policy)

    def _each_within(self, policy: MaxError) -> Rewrite:
        """Keep a bound on every module: raise the ranks of those that rounding put above it."""
        least = [0] * len(self.units)
        for _ in range(max(unit.head.r for unit in self.units)):
            ranks = self._ranks(policy, least)
            result = self.at(ranks)
            over = {row.module for row in _rows(result) if row.error > policy.bound}
            if not over:
                return result
            high = [any(m.name in over for m in unit.modules) for unit in self.units]
            full = [r == unit.own for unit, r in zip(self.units, ranks.kept, strict=True)]
            if any(above and whole for above, whole in zip(high, full, strict=True)):
                break
            least = [
                r + 1 if above else floor
                for r, above, floor in zip(ranks.kept, high, least, strict=True)
            ]
        raise _lost_to_rounding(policy)

    def _refined(self, policy: MaxBytes, views: Sequence[Spectrum], kept: list[int]) -> list[int]:
        """Spend what a header that is shorter than was feared leaves over."""
        header = self.at(Ranks(tuple(kept))).layout.overhead
        again = policy.ranks(views, self._rest(views)._replace(header=header))
        fits = self.at(Ranks(tuple(again))).layout.size <= policy.count
        return again if fits else kept

    def _rest(self, views: Sequence[Spectrum]) -> Rest:
        """Return what the file will hold besides factors, with the longest header possible."""
        largest = self.at(Ranks(tuple(view.choices[-1] for view in views)))
        specs = largest.manifest.specs.values()
        factors = [view.choices[-1] * view.cost for view in views]
        nbytes = sum(count * view.width for count, view in zip(factors, views, strict=True))
        return Rest(
            sum(spec.numel for spec in specs) - round(sum(factors)),
            sum(spec.nbytes for spec in specs) - round(nbytes),
            largest.layout.overhead,
        )

    def _views(self, least: Sequence[int] | None = None) -> list[Spectrum]:
        floors = least or [0] * len(self.units)
        pairs = zip(self.units, floors, strict=True)
        return [unit.spectrum(self.options, floor) for unit, floor in pairs]


def _rows(result: Rewrite) -> list[Row]:
    return [*result.removed, *(change.row for change in result)]


def _paid(result: Rewrite, policy: RankPolicy) -> Rewrite:
    """Return a result that keeps its budget: a format with one rank for all adds zeros to it."""
    params = sum(spec.numel for spec in result.manifest.specs.values())
    match policy:
        case MaxParams(count) if params > count:
            found = f"{params:,} parameters"
        case MaxBytes(count) if result.layout.size > count:
            found = f"{result.layout.size:,} bytes"
        case _:
            return result
    raise BoundError(
        f"{policy} cannot be kept: filled up to one rank for all, the file has {found}"
    ).hint("Ask for a --rank, or write a format in which ranks differ.")


def _lost_to_rounding(policy: MaxError) -> BoundError:
    return BoundError(f"{policy} cannot be kept: rounding to the stored type costs more").hint(
        "Store a wider type (--dtype float32) or allow a larger error."
    )


def survey(
    source: Source,
    options: RewriteOptions | None = None,
    executor: Executor | None = None,
    *,
    expect: RankPolicy | None = None,
    found: Mapping[str, Decomposition] | None = None,
) -> Survey:
    """Find the spectra of an adapter's modules. Reads every factor once.

    Memory holds one r x r matrix per module and the few modules in flight. Where the policy that
    will be asked for is known to be ``expect``, and tells ranks from headers, modules are written
    in the same pass; the results are kept if they are small. What is ``found`` already, of every
    module, is not looked for. Raises `NonFiniteError` for NaN and
    Inf, `PolicyError` for patterns that match nothing, and `UnsupportedError` for what the runtime
    would refuse.
    """
    options, executor = options or RewriteOptions(), executor or Serial()
    options.check(source)
    if found is not None:
        known = [found[name] for name in source]
        return Survey(source, options, executor, units(source, known))
    plan = _from_headers(source, options, executor, expect)
    if plan is None:
        known = list(executor.map(decompose, jobs(source, options.device)))
        return Survey(source, options, executor, units(source, known))
    pairs = list(executor.map(decompose_and_rewrite, plan.jobs))
    finished = {
        job.module.name: (job.target, change)
        for job, (_, change) in zip(plan.jobs, pairs, strict=True)
        if job.target and change
    }
    known = [decomposition for decomposition, _ in pairs]
    return Survey(source, options, executor, units(source, known), finished)


def jobs(source: Source, device: str) -> list[RewriteJob]:
    """Return the jobs that find the spectra of a source's modules."""
    return [RewriteJob(source, module, device) for module in source.manifest.modules]


def _from_headers(
    source: Source, options: RewriteOptions, executor: Executor, policy: RankPolicy | None
) -> Rewrite | None:
    """Return the rewrite at the ranks that headers tell, if a policy needs no more than those."""
    if not isinstance(policy, Fixed) or options.runtime:
        return None
    ranked = []
    for module in source.manifest.modules:
        own = source.ranks.get(module.name, module.r)
        asked = options.rank_of(module) or policy.rank if options.selects(module) else own
        r = max(min(asked, own) // module.groups, 1) * module.groups
        ranked.append(Ranked(module, r, options.target(module, r)))
    if sum(each.target.nbytes for each in ranked) > MOST_FINISHED:
        return None
    return planned(source, ranked, executor, options)
