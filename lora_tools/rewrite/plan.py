"""A rewrite before it is computed: every shape is known, no factor has been made."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lora_tools.adapter import laid_out
from lora_tools.errors import LoraToolsError
from lora_tools.executors import Executor, Serial
from lora_tools.files.layout import Layout
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.report import Change, Report, Row
from lora_tools.rewrite.jobs import Decomposition, RewriteJob, Target
from lora_tools.rewrite.options import RewriteOptions
from lora_tools.rewrite.source import Source
from lora_tools.rewrite.tasks import rewrite


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An adapter to be written: its layout is known at once, its updates when it is iterated.

    Each iteration reads the factors again and computes the same changes, but for those that are
    ``finished`` already.
    """

    source: Source
    manifest: Manifest
    jobs: tuple[RewriteJob, ...]
    executor: Executor
    finished: Mapping[str, tuple[Target, Change]] = field(default_factory=dict)
    """Changes that were made while the factors were at hand, by module, and what for."""
    removed: tuple[Row, ...] = ()
    """The modules for which a policy has chosen rank 0."""

    def __iter__(self) -> Iterator[Change]:
        known = {job.module.name: self._finished(job) for job in self.jobs}
        todo = [job for job in self.jobs if known[job.module.name] is None]
        fresh = iter(self.executor.map(rewrite, todo))
        for job in self.jobs:
            yield known[job.module.name] or next(fresh)

    def __len__(self) -> int:
        return len(self.jobs)

    def _finished(self, job: RewriteJob) -> Change | None:
        target, change = self.finished.get(job.module.name, (None, None))
        return change if target == job.target else None

    @property
    def layout(self) -> Layout:
        """Where every tensor of the file will be."""
        return laid_out(self.source.format, self.manifest)

    def report(self, command: str, policy: str = "", began: float | None = None) -> Report:
        """Return the report of this rewrite, with all that is known before it is computed.

        ``began`` is the `time.monotonic` from which its seconds count.
        """
        source = self.source
        return Report(
            command,
            policy=policy,
            source=", ".join(str(adapter.path) for adapter in source.adapters),
            source_format=source.adapter.format.name,
            target_format=source.format.name,
            params=(source.params, sum(s.numel for s in self.manifest.specs.values())),
            nbytes=(source.nbytes, self.layout.size),
            carried={extra.key: extra.kind for extra in self.manifest.extras},
            dropped=source.dropped,
            removed={**source.removed, **{row.module: row.norm for row in self.removed}},
            left_out=source.left_out(self.manifest),
            notes=self.manifest.notes,
            rows=[*self.removed],
            started=time.monotonic() if began is None else began,
        )


class Ranked(NamedTuple):
    """A module of the source, the rank that it keeps, and how it is to be written."""

    module: Module
    r: int
    target: Module
    known: Decomposition | None = None


def keep(
    source: Source,
    executor: Executor | None = None,
    *,
    dtype: str | None = None,
    alpha: float | None = None,
    found: Mapping[str, Decomposition] | None = None,
) -> Rewrite:
    """Plan a rewrite with every update as it is, at no more than the rank that it has.

    Nothing is decomposed but updates whose rank is less than that of their factors, and of those
    what is ``found`` already is not looked for.
    """
    options = RewriteOptions(scale="keep", dtype=dtype, alpha=alpha)
    ranked = []
    for module in source.manifest.modules:
        r = source.ranks.get(module.name, module.r)
        known = found.get(module.name) if found else None
        ranked.append(Ranked(module, r, options.target(module, r), known))
    return planned(source, ranked, executor or Serial(), options)


def planned(
    source: Source,
    ranked: Sequence[Ranked],
    executor: Executor,
    options: RewriteOptions,
    finished: Mapping[str, tuple[Target, Change]] | None = None,
) -> Rewrite:
    """Lay a rewrite out: each module at its rank, as the format writes its target.

    Raises what the format's ``write`` raises, with the source's path.
    """
    targets = tuple(each.target for each in ranked)
    try:
        manifest = source.format.write(replace(source.manifest, modules=targets))
    except LoraToolsError as error:
        raise error.located(source.path) from error
    options.check_written(manifest)
    jobs = tuple(
        RewriteJob(source, module, options.device, Target(r, written), known)
        for (module, r, _, known), written in zip(ranked, manifest.modules, strict=True)
    )
    return Rewrite(source, manifest, jobs, executor, finished or {})
