"""The work on one tensor: read its difference, decompose it, write its factors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from lora_tools.errors import ConvergenceError, NonFiniteError
from lora_tools.linalg.exact import exact, placed
from lora_tools.linalg.factors import Small
from lora_tools.linalg.krylov import Leading, leading
from lora_tools.linalg.operator import Operator, operator
from lora_tools.linalg.split import Split, split
from lora_tools.shapes import Float
from lora_tools.update import Array
from lora_tools.verbs.extract.delta import Delta, difference
from lora_tools.verbs.extract.keep import Keep, Kept
from lora_tools.verbs.extract.pairs import WeightPair
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.rows import ExtractRow, row_of
from lora_tools.verbs.extract.sites import Matrices

Stage = Literal["both", "survey", "write"]

NOT_FINITE = "not finite"
"""The outcome of a tensor with NaN or Inf that is left out."""


@dataclass(frozen=True, slots=True)
class ExtractJob:
    """One item. With a rank it is written, without one its spectrum is found."""

    plan: ExtractPlan
    item: Item
    keep: Keep
    rank: int
    """The rank to write, or the largest that may be chosen."""
    stage: Stage = "both"
    stored: int = 0
    """The rank to fill up to with zeros; 0: none."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: the item is found again by its number."""
        more = (self.keep, self.rank, self.stage, self.stored)
        return _numbered, (self.plan, self.item.number, *more)

    @property
    def name(self) -> str:
        """What its results are kept under."""
        number = f"{self.item.number:05d}"
        if self.stage == "survey":
            return f"{number}-spectrum"
        return f"{number}-{self.rank}-{max(self.stored, self.rank)}"


def _numbered(plan: ExtractPlan, number: int, *more: Any) -> ExtractJob:
    return ExtractJob(plan, plan.items[number], *more)


class LoadedJob(NamedTuple):
    """A job and what it works on: what it once resulted in, or its difference."""

    job: ExtractJob
    kept: Kept | None
    delta: Delta | None
    bad: str = ""


class ModuleSpectrum(NamedTuple):
    """What is known of a matrix, or of a stack of them, before its rank is."""

    row: ExtractRow
    """Its outcome is ``extracted`` if it has a spectrum."""
    tail: Float[Small, " ranks"]
    """‖ΔW‖² minus what the first 0, 1, … singular values hold."""

    @property
    def outcome(self) -> str:
        """What became of it, as its row says."""
        return self.row.outcome


def load(job: ExtractJob) -> LoadedJob:
    """Read what a job works on, unless it is done already."""
    kept = job.keep.load(job.name)
    if kept is not None:
        return LoadedJob(job, kept, None)
    pair, plan = job.item.pair, job.plan
    stored = [*pair.base.weights(plan.weights[0]), *pair.tuned.weights(plan.weights[1])]
    if not all(weight.is_numbers for weight in stored):
        same = pair.spec == pair.tuned_spec and np.array_equal(
            plan.base.tensors.bytes_of(pair.base.key), plan.tuned.tensors.bytes_of(pair.tuned.key)
        )
        return LoadedJob(job, None, None, "" if same else "not of a floating-point type")
    common = min(pair.spec.shape[0], pair.tuned_spec.shape[0]) if pair.grown else None
    try:
        return LoadedJob(job, None, difference(*plan.weights, pair, common=common))
    except NonFiniteError:
        if not plan.options.skip_bad:
            raise
        return LoadedJob(job, None, None, NOT_FINITE)


@exact()
def finish(loaded: LoadedJob) -> ExtractRow:
    """Extract a module at its rank and keep its factors; return its row."""
    job = loaded.job
    if loaded.kept is not None:
        return row_of(loaded.kept.data)
    row = _plain_row(loaded)
    if row is not None:
        job.keep.save(job.name, {}, asdict(row))
        return row
    assert loaded.delta is not None
    place, delta = _place(job.item.pair), loaded.delta
    matrices = _matrices(job, place, delta)
    found = _spectrum_of(job) or [_decompose(job, m, i) for i, m in enumerate(matrices)]
    code = job.plan.dtype(job.item)
    try:
        rank = min(job.rank, place.rows, place.columns)
        module = job.plan.module(job.item, max(job.stored, rank))
        splits = [
            split(m, f, rank, code, module.scale) for m, f in zip(matrices, found, strict=True)
        ]
    except NonFiniteError as error:
        raise NonFiniteError(f"{job.plan.tuned.path}: {job.item.name}: {error}").hint(
            "Store a wider type: --dtype float32 or bfloat16."
        ) from error
    b, a = _factors(place, splits, max(job.stored, rank) - rank)
    lost = sum(part.squared_error for part in splits)
    row = _row(job, delta, found, rank, lost)
    job.keep.save(job.name, {"b": b, "a": a}, asdict(row))
    return row


@exact()
def survey(loaded: LoadedJob) -> ModuleSpectrum:
    """Find the spectrum of a module, and keep it with the vectors that belong to it."""
    job, kept = loaded.job, loaded.kept
    if kept is None:
        row = _plain_row(loaded)
        if row is not None:
            kept = Kept({"tail": np.zeros(1)}, asdict(row))
        else:
            assert loaded.delta is not None
            kept = _surveyed(job, loaded.delta)
        job.keep.save(job.name, kept.arrays, kept.data)
    return spectrum(kept)


def spectrum(kept: Kept) -> ModuleSpectrum:
    """Return what a survey has kept."""
    data = {key: value for key, value in kept.data.items() if key != "found"}
    return ModuleSpectrum(row_of(data), np.asarray(kept.arrays["tail"]))


def extract_one(job: ExtractJob) -> ExtractRow:
    """Do all of a job."""
    return finish(load(job))


def survey_one(job: ExtractJob) -> ModuleSpectrum:
    """Do all of a job that finds a spectrum."""
    return survey(load(job))


def _surveyed(job: ExtractJob, delta: Delta) -> Kept:
    place = _place(job.item.pair)
    matrices = _matrices(job, place, delta)
    found = [_decompose(job, matrix, i) for i, matrix in enumerate(matrices)]
    squares = np.sum([leader.squares for leader in found], axis=0)
    tail = np.append(delta.squared, delta.squared - np.cumsum(squares)).clip(min=0)
    row = _row(job, delta, found, len(squares), float(tail[-1]))
    arrays: dict[str, np.ndarray] = {"tail": tail}
    for i, (matrix, leader) in enumerate(zip(matrices, found, strict=True)):
        arrays |= {
            f"squares.{i}": leader.squares,
            f"reach.{i}": leader.reach,
            f"vectors.{i}": np.ascontiguousarray(matrix.host(leader.vectors)),
        }
    kinds = [[leader.side, leader.method, leader.steps] for leader in found]
    return Kept(arrays, {**asdict(row), "found": kinds})


def _spectrum_of(job: ExtractJob) -> list[Leading] | None:
    """Return what the survey kept, where a survey came first."""
    if job.stage != "write":
        return None
    kept = job.keep.load(f"{job.item.number:05d}-spectrum")
    if kept is None:
        return None
    return [
        Leading(
            np.asarray(kept.arrays[f"squares.{i}"]),
            np.asarray(kept.arrays[f"reach.{i}"]),
            _moved(job, kept.arrays[f"vectors.{i}"]),
            side,
            method,
            steps,
        )
        for i, (side, method, steps) in enumerate(kept.data["found"])
    ]


def _decompose(job: ExtractJob, matrix: Operator, number: int) -> Leading:
    name = f"{job.item.name}#{number}"
    try:
        return leading(matrix, job.rank, job.plan.precision, name, every=job.stage == "survey")
    except np.linalg.LinAlgError as error:
        raise ConvergenceError(
            f"{job.plan.tuned.path}: {job.item.name}: its decomposition did not converge ({error})"
        ).hint("Leave it out with --exclude, and please report it.") from error


def _matrices(job: ExtractJob, place: Matrices, delta: Delta) -> list[Operator]:
    if place.stack == 1:
        return [operator(_moved(job, delta.array), delta.squared)]
    parts = np.split(delta.array, place.stack)
    return [operator(_moved(job, part)) for part in parts]


def _moved(job: ExtractJob, array: Array) -> Array:
    device = job.plan.options.device
    if device == "cpu":
        return array
    return placed(array, device)


def _factors(place: Matrices, splits: Sequence[Split], more: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B and A, stacked where the place is, with ``more`` columns and rows of zeros."""
    left = np.stack([np.pad(part.left, ((0, 0), (0, more))) for part in splits])
    right = np.stack([np.pad(part.right, ((0, more), (0, 0))) for part in splits])
    if place.transposed:
        left, right = right.swapaxes(1, 2), left.swapaxes(1, 2)
    if place.stack == 1:
        left, right = left[0], right[0]
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def _row(
    job: ExtractJob, delta: Delta, found: Sequence[Leading], rank: int, lost: float
) -> ExtractRow:
    whole = delta.squared
    kept = sum(float(leader.squares[:rank].sum()) for leader in found)
    most = sum(float(leader.reach[rank]) for leader in found)
    return replace(
        _measured(job, "extracted", delta),
        rank_after=rank,
        rank_stored=max(job.stored, rank),
        energy=min(kept / whole, 1.0),
        error=float(np.sqrt(max(lost, 0.0) / whole)),
        optimal_error_lower_bound=float(np.sqrt(max(whole - most, 0.0) / whole)),
        method=" and ".join(sorted({leader.method for leader in found})),
        steps=max(leader.steps for leader in found),
    )


def _plain_row(loaded: LoadedJob) -> ExtractRow | None:
    """Return the row of a tensor that is not extracted, or None."""
    job, item = loaded.job, loaded.job.item
    if loaded.bad == NOT_FINITE:
        return _blank(job, NOT_FINITE)
    if loaded.bad:
        return replace(_blank(job, "left out"), reason=loaded.bad)
    if loaded.delta is None:
        if item.pair.grown and item.treatment == "full":
            return _blank(job, "carried")
        return _blank(job, "unchanged")
    match item.treatment:
        case "full":
            return _measured(job, "carried", loaded.delta)
        case "skip":
            return replace(_measured(job, "left out", loaded.delta), reason=item.reason)
        case _:
            return None


def _blank(job: ExtractJob, outcome: str) -> ExtractRow:
    pair = job.item.pair
    return ExtractRow(job.item.name, pair.tuned_spec.shape, outcome, pair.tuned_spec.nbytes)


def _measured(job: ExtractJob, outcome: str, delta: Delta) -> ExtractRow:
    norm, base = float(np.sqrt(delta.squared)), float(np.sqrt(delta.base_squared))
    return replace(_blank(job, outcome), norm=norm, relative_norm=norm / base if base else 0.0)


def _place(pair: WeightPair) -> Matrices:
    assert pair.place is not None
    return pair.place
