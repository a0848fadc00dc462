"""An extraction at work: which jobs there are, and in what order a policy needs them."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from lora_tools.errors import BoundError, FormatError
from lora_tools.executors import Executor, Serial, ahead
from lora_tools.files.journal import Journal
from lora_tools.files.parts import Part
from lora_tools.files.transient import TransientFiles
from lora_tools.linalg.rank import Fixed, MaxError, RankPolicy, Rest
from lora_tools.report import error
from lora_tools.report.part import PartReport
from lora_tools.verbs.extract import output
from lora_tools.verbs.extract.keep import Keep, load_kept, note, piece
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.ranks import ChosenRanks, choose, fixed, headroom
from lora_tools.verbs.extract.report import concluded
from lora_tools.verbs.extract.rows import ExtractReport, ExtractRow
from lora_tools.verbs.extract.tasks import (
    ExtractJob,
    LoadedJob,
    ModuleSpectrum,
    Stage,
    extract_one,
    finish,
    load,
    spectrum,
    survey,
    survey_one,
)

Result = TypeVar("Result", ExtractRow, ModuleSpectrum)

ATTEMPTS = 8
"""How often ranks are raised for what rounding adds to an error that was promised."""


class FinishedItem(NamedTuple):
    """An item that is finished: what its results are kept under, and its row."""

    name: str
    row: ExtractRow


@dataclass(frozen=True, slots=True)
class Extraction:
    """An extraction that resumes where it stopped."""

    plan: ExtractPlan
    policy: RankPolicy
    journal: Journal
    """Of a folder beside OUT, where results are kept."""
    keep: Keep
    executor: Executor
    seen: Callable[[Item], None]
    """Told of each item that is finished, for progress."""
    evict: bool = False
    """Whether files that were fetched are removed after their last use."""

    @property
    def place(self) -> Path:
        """The folder that becomes OUT."""
        return self.journal.place

    def run(self) -> ExtractReport:
        """Extract everything that is not yet done, and fill the folder that becomes OUT.

        Raises `BoundError` if a bound cannot be kept, `NonFiniteError` for NaN and Inf, and
        `FormatError` if nothing changed.
        """
        done = self._at_fixed(self.policy) if isinstance(self.policy, Fixed) else self._by_spectra()
        items = sorted(self.plan.items, key=lambda item: item.number)
        ordered = [done[item.number].row for item in items]
        kept = [done[item.number].name for item in items]
        if not any(row.outcome in ("extracted", "carried") for row in ordered):
            raise FormatError(
                f"{self.plan.tuned.path}: no tensor that was to be extracted differs from"
                f" {self.plan.base.path}"
            )
        manifest = output.write(self.place, self.plan, items, ordered, kept, self.keep)
        return concluded(self.plan, self.policy, items, ordered, manifest)

    def run_part(self, part: Part, elsewhere: Mapping[str, Path]) -> PartReport:
        """Extract what a part of the items needs that is not yet done.

        Where ranks depend on the spectra of all items, the first call finds those of the part; one
        that finds the others' ``elsewhere``, pieces by name, writes the factors of the part.
        """
        items = self.plan.items
        share = part.share(items, [item.pair.nbytes for item in items])
        mine = {item.number for item in share}
        waiting = False
        if isinstance(self.policy, Fixed):
            done = self._mapped(extract_one, finish, self._written(self.policy), mine)
        else:
            surveys = self._surveys()
            done = self._mapped(survey_one, survey, surveys, mine)
            found = [self._found(job, elsewhere) for job in surveys]
            waiting = not all(found)
            if not waiting:
                live, aside = _live(surveys, [each for each in found if each])
                done = self._mapped(extract_one, finish, self._chosen(live, aside), mine)
        return PartReport("extract", part, len(share), done, len(items), waiting)

    def _mapped(
        self,
        whole: Callable[[ExtractJob], Result],
        second: Callable[[LoadedJob], Result],
        jobs: Sequence[ExtractJob],
        numbers: Collection[int],
    ) -> int:
        """Map the jobs of the items of these numbers; return how many were done already."""
        mine = [job for job in jobs if job.item.number in numbers]
        before = sum(piece(job.name) in self.journal.done for job in mine)
        deque(self._map(whole, second, mine), 0)
        return before

    def _found(self, job: ExtractJob, elsewhere: Mapping[str, Path]) -> ModuleSpectrum | None:
        """Return a spectrum that this part or another has found, or None."""
        kept, other = self.keep.load(job.name), elsewhere.get(piece(job.name))
        if kept is None and other is not None:
            kept = load_kept(other)
        return spectrum(kept) if kept else None

    def _written(self, policy: Fixed) -> list[ExtractJob]:
        """Return the jobs of all items at ranks that need no spectrum."""
        return self._jobs(self.plan.items, fixed(self.plan, policy, self.plan.items), "both")

    def _surveys(self) -> list[ExtractJob]:
        """Return the jobs that find the spectra of all items."""
        tops = [headroom(item, self.plan.options.max_rank) for item in self.plan.items]
        return self._jobs(self.plan.items, ChosenRanks(tuple(tops)), "survey")

    def _chosen(
        self, live: Sequence[tuple[Item, ModuleSpectrum]], aside: Mapping[int, FinishedItem]
    ) -> list[ExtractJob]:
        """Return the jobs that write at the ranks that the policy chooses."""
        items, found = [item for item, _ in live], [one for _, one in live]
        rest = self._rest(items, found, aside)
        return self._jobs(items, choose(self.plan, self.policy, items, found, rest), "write")

    def _at_fixed(self, policy: Fixed) -> dict[int, FinishedItem]:
        """Write at ranks that need no spectrum, in one pass over the files."""
        jobs = self._written(policy)
        rows = self._map(extract_one, finish, jobs)
        return {
            job.item.number: FinishedItem(job.name, row)
            for job, row in zip(jobs, rows, strict=True)
        }

    def _by_spectra(self) -> dict[int, FinishedItem]:
        """Survey first, then write at the ranks that the policy chooses: two passes or more."""
        jobs = self._surveys()
        live, aside = _live(jobs, list(self._map(survey_one, survey, jobs)))
        return aside | self._within(live, aside) if live else aside

    def _within(
        self, live: Sequence[tuple[Item, ModuleSpectrum]], aside: Mapping[int, FinishedItem]
    ) -> dict[int, FinishedItem]:
        """Write at the chosen ranks; where rounding breaks a bound on the error, aim lower."""
        policy, items, found = self.policy, [i for i, _ in live], [one for _, one in live]
        rest = self._rest(items, found, aside)
        for _ in range(ATTEMPTS):
            jobs = self._jobs(items, choose(self.plan, policy, items, found, rest), "write")
            rows = list(self._map(extract_one, finish, jobs))
            excess = _excess(self.policy, rows) if isinstance(self.policy, MaxError) else 0.0
            if not isinstance(policy, MaxError) or excess <= 1:
                pairs = zip(jobs, rows, strict=True)
                return {job.item.number: FinishedItem(job.name, row) for job, row in pairs}
            policy = replace(policy, bound=policy.bound / max(excess, 1 + 1e-6) * 0.9999)
        raise BoundError(
            f"{self.policy} cannot be kept: rounding to the stored type costs more"
        ).hint("Store a wider type (--dtype float32) or allow a larger error.")

    def _jobs(self, items: Sequence[Item], chosen: ChosenRanks, stage: Stage) -> list[ExtractJob]:
        return [
            ExtractJob(self.plan, item, self.keep, rank, stage, chosen.stored)
            for item, rank in zip(items, chosen.ranks, strict=True)
        ]

    def _map(
        self,
        whole: Callable[[ExtractJob], Result],
        second: Callable[[LoadedJob], Result],
        jobs: Sequence[ExtractJob],
    ) -> Iterator[Result]:
        """Map jobs: whole ones side by side on the host; on a device with the next one read."""
        uses = (path for job in jobs for path in self.plan.files(job.item))
        transient = TransientFiles(uses if self.evict else ())
        if self.plan.options.device == "cpu":
            results = self.executor.map(whole, _expected(jobs))
        else:
            results = Serial().map(second, ahead(load, jobs))
        for job, result in zip(jobs, results, strict=True):
            note(self.journal, job.name)
            if self.evict and job.item.treatment == "full":
                note(self.journal, output.save_whole(self.plan, job.item, self.keep))
            for path in self.plan.files(job.item):
                transient.done(path)
            self.seen(job.item)
            yield result

    def _rest(
        self, items: list[Item], found: list[ModuleSpectrum], aside: Mapping[int, FinishedItem]
    ) -> Rest:
        """Return what the file will hold besides factors, with the longest header possible."""
        members = [(item, one.row) for item, one in zip(items, found, strict=True)]
        members += [(i, aside[i.number].row) for i in self.plan.items if i.number in aside]
        manifest = output.describe(self.plan, [i for i, _ in members], [r for _, r in members])
        extras = [extra.spec for extra in manifest.extras]
        header = len(output.plan_file(manifest).header)
        return Rest(sum(s.numel for s in extras), sum(s.nbytes for s in extras), header)


def _live(
    jobs: Sequence[ExtractJob], found: Sequence[ModuleSpectrum]
) -> tuple[list[tuple[Item, ModuleSpectrum]], dict[int, FinishedItem]]:
    """Return the items that have a spectrum with it, and the finished others by their number."""
    pairs = list(zip(jobs, found, strict=True))
    live = [(job.item, one) for job, one in pairs if one.outcome == "extracted"]
    aside = {
        job.item.number: FinishedItem(job.name, one.row)
        for job, one in pairs
        if one.outcome != "extracted"
    }
    return live, aside


def _expected(jobs: Iterable[ExtractJob]) -> Iterator[ExtractJob]:
    """Pass jobs on to an executor, which takes them ahead of time: their weights are read ahead."""
    for job in jobs:
        (old, new), pair = job.plan.weights, job.item.pair
        for weight in (*pair.base.weights(old), *pair.tuned.weights(new)):
            weight.expect()
        yield job


def _excess(policy: MaxError, rows: Sequence[ExtractRow]) -> float:
    """Return by which factor written errors exceed a bound."""
    if policy.per_module:
        return max((row.error for row in rows), default=0.0) / policy.bound
    return error(rows) / policy.bound
