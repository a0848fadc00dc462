"""The jobs of a merge: some rows of a tensor each, read, added to, and written at their place."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.files.inputs import input_descriptor
from lora_tools.files.place import Place, as_bytes
from lora_tools.files.transfer import copy, opened, put
from lora_tools.linalg.apply import Adder, Device, Host
from lora_tools.linalg.exact import exact
from lora_tools.linalg.rounding import round_into
from lora_tools.linalg.stored import WIDTH, accumulator
from lora_tools.linalg.tally import Tally
from lora_tools.merging import MergePlan, TensorPlan
from lora_tools.merging.strips import by_columns, height, strips, tokens
from lora_tools.verbs.merge.shards import Shard

CHUNK = 1 << 25
"""Bytes of a job: enough to be worth a thread's while, few enough to share out evenly."""


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Rows of an entry, and where their bytes go."""

    merge_plan: MergePlan
    shard: str
    key: str
    rows: tuple[int, int]
    path: Path
    start: int
    """Where the entry begins in the file."""
    device: str = "cpu"

    @property
    def entry(self) -> TensorPlan:
        """What the tensor is made of."""
        return self.merge_plan.entries[self.key]


@dataclass(frozen=True, slots=True)
class MergedRows:
    """A job that is done, and what it did to the numbers."""

    shard: str
    key: str
    tally: Tally
    nbytes: int
    """Bytes that were written."""


def jobs(merge_plan: MergePlan, shard: Shard, path: Path, device: str) -> Iterator[MergeJob]:
    """Yield the jobs of a shard, in the order of its file."""
    path = path.absolute()  # another process may be in another folder
    for entry in sorted(shard.entries, key=lambda entry: shard.slot(entry).start):
        start = shard.slot(entry).start
        rows = entry.table[0]
        step = rows
        if not by_columns(entry) and rows:
            step = max(1, CHUNK * rows // max(entry.spec.nbytes, 1))
            step = max(height(entry), step // height(entry) * height(entry))
        if entry.plain or not rows:
            yield MergeJob(merge_plan, shard.name, entry.key, (0, rows), path, start, device)
            continue
        for first in range(0, rows, step):
            part = (first, min(first + step, rows))
            yield MergeJob(merge_plan, shard.name, entry.key, part, path, start, device)


@exact()
def merge_rows(job: MergeJob) -> MergedRows:
    """Write the rows of a job and return their tally; the file's other bytes stay as they are."""
    entry = job.entry
    with opened(job.path, os.O_WRONLY) as target:
        if entry.plain:
            _copy(entry, target, job.start)
            return MergedRows(job.shard, job.key, Tally(), entry.spec.nbytes)
        tally = _sum(job, target)
    if not (math.isfinite(tally.update) and math.isfinite(tally.error)):
        raise NonFiniteError(
            f"{entry.key}: NaN or Inf in the sum, or too large for {entry.spec.dtype}"
        ).hint("If the base and the adapter are sound, write a wider type: --dtype float32.")
    count = (job.rows[1] - job.rows[0]) * entry.table[1] * WIDTH[entry.spec.dtype]
    return MergedRows(job.shard, job.key, tally, count)


def _copy(entry: TensorPlan, target: int, start: int) -> None:
    values = entry.source.values
    if isinstance(values, Place):
        with input_descriptor(values.path) as source:
            copy(source, values.slot.start, entry.spec.nbytes, target, start)
    else:
        put(target, as_bytes(values).data, start)


def _sum(job: MergeJob, target: int) -> Tally:
    entry = job.entry
    code, (_, columns) = entry.spec.dtype, entry.table
    width = columns * WIDTH[code]
    size = min(height(entry), job.rows[1] - job.rows[0]) * columns
    weight = entry.source.weight
    source = weight.spec.dtype if weight.plain else None
    adder: Adder = Host(size, code) if job.device == "cpu" else Device(job.device, source, code)
    total = Tally()
    for strip in strips(entry, job.rows, accumulator(code)):
        wide = adder.load(strip.raw, (strip.last - strip.first) * columns, strip.decode)
        if strip.left is None or strip.right is None:
            out = adder.finish(wide)
        else:
            out, tally = adder.add(wide, strip.left, strip.right, strip.gain)
            total += tally
        put(target, out.data, job.start + strip.first * width)
    for row, values in tokens(entry, job.rows):
        out = np.empty(width, np.uint8)
        round_into(values, code, out, np.empty_like(values))
        put(target, out.data, job.start + row * width)
    return total
