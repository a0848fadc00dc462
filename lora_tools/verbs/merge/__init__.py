"""Merge: adapters into the weights of their base, rounded once, with a report of what that took."""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_tools.errors import NonFiniteError, OutputError
from lora_tools.executors import Executor, Serial
from lora_tools.files.journal import Journal, begun, journaled, journaled_part
from lora_tools.files.ours import Force
from lora_tools.files.parts import Part
from lora_tools.files.transfer import begin
from lora_tools.files.transient import TransientFiles
from lora_tools.linalg.metrics import squared_norm
from lora_tools.linalg.tally import Tally
from lora_tools.merging import MergeOptions, MergePlan, TensorPlan, WeightedAdapter, plan
from lora_tools.names import collapse, template
from lora_tools.report import shape, size, table
from lora_tools.report.part import PartReport
from lora_tools.update import factors
from lora_tools.verbs.merge.folder import complete, purpose, sources
from lora_tools.verbs.merge.jobs import MergeJob, jobs, merge_rows
from lora_tools.verbs.merge.outcome import Merged, MergeRow, row
from lora_tools.verbs.merge.shards import Shard, Shards, shards

__all__ = ["Merge", "MergeOptions", "MergeRow", "Merged", "WeightedAdapter", "merge", "plan"]


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge before it is computed: every file and every offset is known."""

    merge_plan: MergePlan
    files: Shards
    device: str = "cpu"
    removed: Mapping[str, float] = field(default_factory=dict)
    """The norms of the updates of modules that are left out because it was asked for."""

    @property
    def report(self) -> Merged:
        """The report, with all that is known before it is computed."""
        merge_plan = self.merge_plan
        adapters = tuple((str(each.adapter.path), each.weight) for each in merge_plan.adapters)
        return Merged(
            str(merge_plan.base.path),
            adapters,
            copied=sum(not _counts(entry) for entry in merge_plan.entries.values()),
            nbytes=self.files.nbytes,
            shards=len(self.files.shards),
            left_out=dict(merge_plan.left_out),
            notes=merge_plan.notes,
            prefixes=merge_plan.swaps,
            removed=self.removed,
        )

    def to_text(self) -> str:
        """Return the plan as a table for a terminal."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for entry in self.merge_plan.entries.values():
            if _counts(entry):
                about = (template(entry.key), entry.outcome, entry.source.spec.dtype)
                more = (entry.spec.dtype, shape(entry.spec.shape))
                groups.setdefault((*about, *more), []).append(entry.key)
        lines = [
            (collapse(keys), sizes, old if old == new else f"{old} → {new}", outcome, len(keys))
            for (_, outcome, old, new, sizes), keys in groups.items()
        ]
        headers = ("tensor", "shape", "dtype", "outcome", "count")
        return f"{table(lines, headers)}\n\n{self.report.plan()}"

    def write(
        self,
        out: Path,
        executor: Executor | None = None,
        *,
        force: Force = False,
        arguments: str = "",
        finished: Callable[[int], None] = lambda nbytes: None,
        evict: bool = False,
    ) -> Merged:
        """Write the merged model to the folder ``out`` and return what was done.

        ``out`` appears when it is complete. What a failed or killed call has finished is not
        computed again. ``finished`` is called with the bytes of each piece that is done; with
        ``evict``, files of the base that had to be fetched are removed after their last use. Raises
        `OutputError` if the disk has too little room, before the first byte is written.
        """
        began = time.monotonic()
        _check_room(out, self.files.nbytes)
        report = self.report
        report.arguments = arguments
        decided, private = purpose(self.merge_plan, self.files), sources(self.merge_plan)
        with journaled(out, decided, force=force, sources=private) as journal:
            report.resumed = len(journal.done)
            self._write(journal, self.files.shards, executor or Serial(), finished, evict=evict)
            for shard in self.files.shards:
                report.rows += [_row(line) for line in journal.done[_name(journal, shard)]]
            report.seconds = time.monotonic() - began
            complete(self.merge_plan, self.files, report, journal.place)
        return report

    def write_part(
        self,
        out: Path,
        part: Part,
        executor: Executor | None = None,
        *,
        finished: Callable[[int], None] = lambda nbytes: None,
        evict: bool = False,
    ) -> PartReport:
        """Write a part's share of the shards beside ``out``, where `write` takes them over.

        Raises `OutputError` as `write` does, and if the part was begun for another merge.
        """
        sizes = [shard.layout.size for shard in self.files.shards]
        mine = part.share(self.files.shards, sizes)
        _check_room(part.beside(out), sum(shard.layout.size for shard in mine))
        decided = purpose(self.merge_plan, self.files)
        with journaled_part(out, part, decided) as journal:
            resumed = sum(_name(journal, shard) in journal.done for shard in mine)
            self._write(journal, mine, executor or Serial(), finished, evict=evict)
        return PartReport("merge", part, len(mine), resumed, len(sizes))

    def _write(
        self,
        journal: Journal,
        of: Iterable[Shard],
        executor: Executor,
        finished: Callable[[int], None],
        *,
        evict: bool,
    ) -> None:
        todo = {shard.name: shard for shard in of if _name(journal, shard) not in journal.done}
        tallies: dict[str, dict[str, Tally]] = {name: {} for name in todo}
        merge_plan, place = self.merge_plan, journal.place
        ahead = (j for shard in todo.values() for j in jobs(merge_plan, shard, place, self.device))
        transient = TransientFiles(path for job in ahead for path in job.entry.files if evict)
        before: str | None = None
        for done in executor.map(merge_rows, self._jobs(todo.values(), journal)):
            if before is not None and before != done.shard:
                _close(journal, todo[before], tallies[before])
            before, sums = done.shard, tallies[done.shard]
            sums[done.key] = sums.get(done.key, Tally()) + done.tally
            for path in merge_plan.entries[done.key].files:
                transient.done(path)
            finished(done.nbytes)
        if before is not None:
            _close(journal, todo[before], tallies[before])

    def _jobs(self, todo: Iterable[Shard], journal: Journal) -> Iterator[MergeJob]:
        for shard in todo:
            path = journal.path(_name(journal, shard))
            path.parent.mkdir(exist_ok=True)  # the model's folder in a pipeline
            begin(path, shard.layout)
            yield from jobs(self.merge_plan, shard, path, self.device)


def merge(merge_plan: MergePlan, *, most: int | None = None, device: str = "cpu") -> Merge:
    """Lay a merge out: its files as the base's, or of at most ``most`` bytes each.

    Reads the modules that are left out because it was asked for, for their norms. Nothing else is
    computed before the result's `Merge.write`.
    """
    return Merge(merge_plan, shards(merge_plan, most), device, _removed(merge_plan))


def _removed(merge_plan: MergePlan) -> dict[str, float]:
    """Return the norms of what is left out, at the weight of its adapter."""
    several = len(merge_plan.adapters) > 1
    found = {}
    for weighted, module in merge_plan.removed:
        adapter = weighted.adapter
        name = f"{adapter.path}: {module.name}" if several else module.name
        try:
            squared = squared_norm(factors(adapter.update(module)))
        except NonFiniteError as error:
            raise error.located(f"{adapter.path}: {module.name}") from error
        found[name] = abs(weighted.weight) * math.sqrt(squared)
    return found


def _close(journal: Journal, shard: Shard, tallies: dict[str, Tally]) -> None:
    rows = [row(entry, tallies[entry.key]) for entry in shard.entries if _counts(entry)]
    journal.finish(_name(journal, shard), [asdict(each) for each in rows])


def _name(journal: Journal, shard: Shard) -> str:
    """Return what a journal calls a shard."""
    return f"{journal.place.name}/{shard.name}"


def _row(line: dict[str, Any]) -> MergeRow:
    return MergeRow(**line | {"shape": tuple(line["shape"])})  # JSON has no tuples


def _counts(entry: TensorPlan) -> bool:
    """Whether an entry has a row in the report: all but plain copies of the base's do."""
    return not entry.plain or entry.source.adapter is not None


def _check_room(out: Path, nbytes: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free, needed = shutil.disk_usage(parent).free, nbytes - begun(out)
    if needed > free:
        raise OutputError(
            f"{out}: needs {size(needed)} of disk space, and {parent} has {size(free)}"
        ).hint("Choose an output path on another disk.")
