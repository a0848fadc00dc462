"""Extract: the best adapter of a full fine-tune, with a certificate of how good it can be."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lora_tools.engine import Engine, Serial
from lora_tools.engine.ahead import ahead
from lora_tools.errors import BoundError, FormatError
from lora_tools.linalg.krylov import Precision
from lora_tools.linalg.rank import Fixed, MaxError, RankPolicy, Rest
from lora_tools.model import Model, open_model
from lora_tools.ops.extract import output
from lora_tools.ops.extract.keep import Keep, identity, open_keep
from lora_tools.ops.extract.options import Options
from lora_tools.ops.extract.plan import Item, Plan, make_plan
from lora_tools.ops.extract.ranks import Chosen, choose, fixed, headroom
from lora_tools.ops.extract.rows import Report, Row
from lora_tools.ops.extract.tasks import (
    Job,
    Loaded,
    Spectrum,
    Stage,
    extract_one,
    finish,
    load,
    survey,
    survey_one,
)
from lora_tools.report import total

__all__ = ["Extraction", "Options", "Plan", "Precision", "Report", "Row", "extract", "plan"]

Result = TypeVar("Result")

ATTEMPTS = 8
"""How often ranks are raised for what rounding adds to an error that was promised."""


def plan(
    base: str | Path | Model, tuned: str | Path | Model, options: Options | None = None
) -> Plan:
    """Decide what becomes of each tensor, from headers alone. Raises what `make_plan` does."""
    models = [m if isinstance(m, Model) else open_model(m) for m in (base, tuned)]
    return make_plan(models[0], models[1], options or Options())


@dataclass(frozen=True, slots=True)
class Extraction:
    """An extraction that goes on where it stopped. Its results are kept in a folder beside OUT."""

    plan: Plan
    policy: RankPolicy
    keep: Keep
    engine: Engine
    seen: Callable[[Item], None]
    """Told of each item that is done with, for progress."""

    def run(self, place: Path) -> Report:
        """Extract everything that is not yet done, and fill the empty folder ``place``.

        Raises `BoundError` if a bound cannot be kept, `NonFiniteError` for NaN and Inf, and
        `FormatError` if nothing changed.
        """
        lora = [item for item in self.plan.items if item.treatment == "lora"]
        others = [item for item in self.plan.items if item.treatment != "lora"]
        aside = dict(zip(_numbers(others), self._extract(others, [1] * len(others)), strict=True))
        if isinstance(self.policy, Fixed):
            chosen = fixed(self.plan, self.policy, lora)
            rows = self._at(lora, chosen, "both")
        else:
            lora, chosen, rows, more = self._by_spectra(lora, aside)
            aside |= more
        found = aside | dict(zip(_numbers(lora), rows, strict=True))
        names = {job.item.number: job.name for job in self._jobs(lora, chosen, "write")}
        items = sorted(self.plan.items, key=lambda item: item.number)
        kept = [names.get(item.number, "") for item in items]
        ordered = [found[item.number] for item in items]
        if not any(row.outcome in ("extracted", "full") for row in ordered):
            raise FormatError(
                f"{self.plan.tuned.path}: no tensor that was to be extracted differs from"
                f" {self.plan.base.path}"
            )
        manifest = output.write(place, self.plan, items, ordered, kept, self.keep)
        return Report(
            base=str(self.plan.base.path),
            tuned=str(self.plan.tuned.path),
            policy=str(self.policy),
            tolerance=self.plan.options.precision.tolerance,
            chance=self.plan.options.precision.chance,
            rows=_as_in_base(self.plan, items, ordered),
            params=sum(spec.numel for spec in manifest.specs.values()),
            nbytes=output.plan_file(manifest).size,
            notes=(*self.plan.pairs.notes, *_notes(self.plan, ordered)),
            only_base=self.plan.pairs.only_base,
            only_tuned=self.plan.pairs.only_tuned,
        )

    def _by_spectra(
        self, lora: Sequence[Item], aside: dict[int, Row]
    ) -> tuple[list[Item], Chosen, list[Row], dict[int, Row]]:
        """Survey first, then write at the ranks that the policy chooses."""
        tops = [headroom(self.plan, item) for item in lora]
        jobs = [
            Job(self.plan, item, self.keep, top, "survey")
            for item, top in zip(lora, tops, strict=True)
        ]
        spectra = list(self._map(survey_one, survey, jobs))
        pairs = list(zip(lora, spectra, strict=True))
        live = [item for item, one in pairs if one.row.outcome == "extracted"]
        known = [one for _, one in pairs if one.row.outcome == "extracted"]
        rest = {item.number: one.row for item, one in pairs if one.row.outcome != "extracted"}
        chosen, rows = self._within(live, known, aside) if live else (Chosen(()), [])
        return live, chosen, rows, rest

    def _within(
        self, items: list[Item], found: list[Spectrum], aside: dict[int, Row]
    ) -> tuple[Chosen, list[Row]]:
        """Write at the chosen ranks; where rounding breaks a bound on the error, aim lower."""
        policy = self.policy
        for _ in range(ATTEMPTS):
            chosen = choose(self.plan, policy, items, found, self._rest(items, found, aside))
            rows = self._at(items, chosen, "write")
            if not isinstance(self.policy, MaxError) or not isinstance(policy, MaxError):
                return chosen, rows
            excess = _excess(self.policy, rows)
            if excess <= 1:
                return chosen, rows
            policy = replace(policy, bound=policy.bound / max(excess, 1 + 1e-6) * 0.9999)
        raise BoundError(
            f"{self.policy} cannot be kept: rounding to the stored type costs more"
        ).hint("Store a wider type (--dtype float32) or allow a larger error.")

    def _at(self, items: Sequence[Item], chosen: Chosen, stage: Stage) -> list[Row]:
        return list(self._map(extract_one, finish, self._jobs(items, chosen, stage)))

    def _jobs(self, items: Sequence[Item], chosen: Chosen, stage: Stage) -> list[Job]:
        return [
            Job(self.plan, item, self.keep, rank, stage, chosen.stored)
            for item, rank in zip(items, chosen.ranks, strict=True)
        ]

    def _extract(self, items: Sequence[Item], ranks: Sequence[int]) -> list[Row]:
        jobs = [
            Job(self.plan, item, self.keep, rank) for item, rank in zip(items, ranks, strict=True)
        ]
        return list(self._map(extract_one, finish, jobs))

    def _map(
        self,
        whole: Callable[[Job], Result],
        second: Callable[[Loaded], Result],
        jobs: Sequence[Job],
    ) -> Iterator[Result]:
        """Map jobs: whole ones side by side on the host; on a device with the next one read."""
        if self.plan.options.device == "cpu":
            results = self.engine.map(whole, _expected(jobs))
        else:
            results = Serial().map(second, ahead(load, jobs))
        for job, result in zip(jobs, results, strict=True):
            self.seen(job.item)
            yield result

    def _rest(self, items: list[Item], found: list[Spectrum], aside: dict[int, Row]) -> Rest:
        """Return what the file will hold besides factors, with the longest header possible."""
        rows = [one.row for one in found]
        full = [(item, aside[item.number]) for item in self.plan.items if item.number in aside]
        members = [*zip(items, rows, strict=True), *full]
        manifest = output.describe(self.plan, [i for i, _ in members], [r for _, r in members])
        extras = [extra.spec for extra in manifest.extras]
        header = len(output.plan_file(manifest).header)
        return Rest(sum(s.numel for s in extras), sum(s.nbytes for s in extras), header)


def extract(
    plan: Plan,
    policy: RankPolicy,
    out: Path,
    engine: Engine | None = None,
    *,
    resume: bool = True,
    seen: Callable[[Item], None] = lambda item: None,
) -> Extraction:
    """Prepare to extract: open what an interrupted run of the same extraction has finished."""
    settings = {**plan.options.describe(), "policy": str(policy)}
    keep = open_keep(out, identity(plan.base, plan.tuned, settings), resume=resume)
    return Extraction(plan, policy, keep, engine or Serial(), seen)


def _expected(jobs: Iterable[Job]) -> Iterator[Job]:
    """Pass jobs on to an engine, which takes them ahead of time: their weights are read ahead."""
    for job in jobs:
        pair = job.item.pair
        job.plan.base.tensors.expect(pair.base)
        job.plan.tuned.tensors.expect(pair.tuned)
        yield job


def _numbers(items: Sequence[Item]) -> Iterator[int]:
    return (item.number for item in items)


def _excess(policy: MaxError, rows: Sequence[Row]) -> float:
    """Return by which factor written errors exceed a bound."""
    if policy.per_module:
        return max((row.error for row in rows), default=0.0) / policy.bound
    return total((row.norm, row.error) for row in rows) / policy.bound


def _as_in_base(plan: Plan, items: Sequence[Item], rows: Sequence[Row]) -> list[Row]:
    order = {pair.name: number for number, pair in enumerate(plan.pairs.both)}
    pairs = sorted(zip(items, rows, strict=True), key=lambda both: order[both[0].pair.name])
    return [row for _, row in pairs]


def _notes(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    for item in plan.items:
        if item.pair.grown:
            before, after = item.pair.spec.shape[0], item.pair.tuned_spec.shape[0]
            yield (
                f"{item.name} has {before:,} rows in the base and {after:,} in the tuned model;"
                " only those that both have are compared."
            )
    if plan.options.base_model is None:
        yield "The adapter does not name its base; --base-model ID does."
    if any(row.outcome == "extracted" and row.rank * 2 >= min(row.shape[:2]) for row in rows):
        yield "Some ranks are half of a full one or more: those modules are no smaller than ΔW."
