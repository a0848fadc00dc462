"""The job of a diff: read one pair and measure it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lora_tools.errors import NonFiniteError
from lora_tools.formats.finite import broken, damaged
from lora_tools.formats.manifest import Extra, Module
from lora_tools.linalg.compare import compare as compare_factors
from lora_tools.linalg.exact import exact, placed
from lora_tools.linalg.metrics import norm, squared_norm
from lora_tools.linalg.rescale import refactored
from lora_tools.update import Array, Biased, DoRA, Update, factors
from lora_tools.verbs.diff.pairs import DiffJob, Side
from lora_tools.verbs.diff.rows import DiffFigures, DiffRow, ratio

CHUNK = 1 << 20
"""Elements of a tensor that are widened at a time: a vocabulary's head is a gigabyte."""


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def compare(job: DiffJob) -> DiffRow:
    """Return what is found of one pair; `NonFiniteError` names the tensors that hold NaN or Inf."""
    a, b = (side.thing if side else None for side in (job.a, job.b))
    return _tensor(job) if isinstance(a or b, Extra) else _module(job, a, b)


def _module(job: DiffJob, a: Module | Extra | None, b: Module | Extra | None) -> DiffRow:
    x, y = (module if isinstance(module, Module) else None for module in (a, b))
    figures, identical = None, False
    if x is None or y is None or (x.stack, x.out, x.inp) == (y.stack, y.out, y.inp):
        left, right = (_update(side) if side else None for side in (job.a, job.b))
        try:
            figures, identical = _measure(left, right)
        except NonFiniteError as error:
            raise _not_finite(job, (left, right), error) from error
    return DiffRow(
        kind="module",
        names=(x.name if x else None, y.name if y else None),
        shapes=(x.shape if x else None, y.shape if y else None),
        dtypes=(_dtype(x), _dtype(y)),
        ranks=(x.r if x else None, y.r if y else None),
        scales=(x.scale if x else None, y.scale if y else None),
        figures=figures,
        identical=identical,
    )


def _measure(x: Update | None, y: Update | None) -> tuple[DiffFigures, bool]:
    """Return the figures of two updates, and whether they are the same numbers."""
    magnitude = _relative(_magnitude(x), _magnitude(y))
    if magnitude is not None and None in (x, y):
        magnitude = math.inf  # a magnitude acts even where the direction is zero
    bias = _relative(_bias(x), _bias(y))
    if x is None or y is None:
        norm = _norm(x or y)
        norms = (norm, 0.0) if y is None else (0.0, norm)
        lone = DiffFigures(norms, norm, residual=norms[1], magnitude=magnitude, bias=bias)
        return lone, False
    found = compare_factors(factors(x), factors(y))
    figures = DiffFigures(
        found.norms,
        found.difference,
        found.inner,
        found.residual,
        found.tails,
        found.columns,
        found.rows,
        found.noise,
        magnitude,
        bias,
    )
    return figures, found.equal and not magnitude and not bias


def _tensor(job: DiffJob) -> DiffRow:
    """Compare two tensors that belong to no update, a piece at a time."""
    a, b = (side.thing if side else None for side in (job.a, job.b))
    x, y = (extra if isinstance(extra, Extra) else None for extra in (a, b))
    figures, identical = None, False
    if x is None or y is None or x.spec.shape == y.spec.shape:
        left, right = (_pieces(side) for side in (job.a, job.b))
        parts = [(0.0, 0.0, 0.0)]
        zero = np.zeros(())
        while True:
            p, q = next(left, None), next(right, None)
            if p is None and q is None:
                break
            p, q = (zero if piece is None else piece for piece in (p, q))
            parts.append((norm(p), norm(q), norm(p - q)))
        first, second, difference = (math.hypot(*column) for column in zip(*parts, strict=True))
        _check_finite(job, (first, second, difference))
        figures = DiffFigures((first, second), difference)
        identical = bool(x and y and x.spec == y.spec and not difference)
    return DiffRow(
        kind="tensor",
        names=(x and x.key, y and y.key),
        shapes=(x and x.spec.shape, y and y.spec.shape),
        dtypes=(x and x.spec.dtype, y and y.spec.dtype),
        ranks=(None, None),
        scales=(None, None),
        figures=figures,
        identical=identical,
    )


def _update(side: Side) -> Update:
    """Read a module's update: into arrays of numpy on the host, into torch's on a device."""
    adapter, module = side.adapter, side.thing
    assert isinstance(module, Module)
    if side.device == "cpu":
        return adapter.format.update(module, adapter.tensors.arrays)
    update = adapter.format.update(module, adapter.tensors)
    low = factors(update)
    moved = replace(low, a=placed(low.a, side.device), b=placed(low.b, side.device))
    return refactored(update, moved)


def _dtype(module: Module | None) -> str | None:
    return module.dtype if module else None


def _pieces(side: Side | None) -> Iterator[np.ndarray]:
    """Yield a tensor in float64, in pieces; nothing if there is none."""
    if side is None:
        return
    flat = side.adapter.tensors.arrays[side.name].reshape(-1)
    for start in range(0, flat.shape[0], CHUNK):
        yield _double(flat[start : start + CHUNK])


def _double(array: Array) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array.astype(np.float64)
    wide: np.ndarray = array.detach().cpu().float().double().numpy()
    return wide


def _norm(update: Update | None) -> float:
    assert update is not None
    return math.sqrt(squared_norm(factors(update)))


def _magnitude(update: Update | None) -> np.ndarray | None:
    return _double(update.magnitude).reshape(-1) if isinstance(update, DoRA) else None


def _bias(update: Update | None) -> np.ndarray | None:
    if not isinstance(update, Biased):
        return None
    scaled: np.ndarray = update.weight.scale * _double(update.bias)
    return scaled


def _relative(x: np.ndarray | None, y: np.ndarray | None) -> float | None:
    """Return ``||x - y|| / ||x||``; infinite if only the second is there, None if neither is."""
    if x is None and y is None:
        return None
    p, q = (np.zeros(()) if vector is None else vector for vector in (x, y))
    difference, whole = norm(p - q), norm(p)
    if not (math.isfinite(difference) and math.isfinite(whole)):
        raise NonFiniteError("its magnitude or bias exceeds float64")
    return ratio(difference, whole)


def _not_finite(
    job: DiffJob, updates: tuple[Update | None, ...], why: NonFiniteError
) -> NonFiniteError:
    """Name the tensors of either side that hold NaN or Inf; if none does, say why."""
    bad = [
        f"{side.adapter.tensors.path}: {key}"
        for side, update in zip((job.a, job.b), updates, strict=True)
        if side and update and isinstance(side.thing, Module)
        for key in broken(side.thing, update)
    ]
    return damaged(bad) if bad else NonFiniteError(f"{job.names[0]}: {why}")


def _check_finite(job: DiffJob, norms: Sequence[float]) -> None:
    bad = [
        f"{side.adapter.tensors.path}: {side.name}"
        for side, norm in zip((job.a, job.b), norms, strict=False)
        if side and not math.isfinite(norm)
    ]
    if bad:
        raise damaged(bad)
    if not math.isfinite(norms[-1]):
        raise NonFiniteError(f"{job.names[0]}: its numbers differ by more than float64 can hold")
