"""W' = round(W + left @ right), a slice of rows at a time, and what the rounding took.

One pass over a slice that stays in the cache: widen, multiply, add, round, compare. The fidelity
is that of every element, and costs a third of the arithmetic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from lora_tools.linalg.exact import exact, placed, tensor
from lora_tools.linalg.range import check_measurable
from lora_tools.linalg.rounding import round_into, rounded_tensor
from lora_tools.linalg.stored import WIDTH, accumulator
from lora_tools.linalg.tally import Tally, tally
from lora_tools.shapes import Float
from lora_tools.update import Array

Decode: TypeAlias = Callable[[Float[np.ndarray, "n"]], None]
"""Fills an array with numbers, whatever they are stored as."""

NEAR = 2.0**-40
"""Float32 holds the squares of numbers from here to its reciprocal, and those of their rounding."""


class Gain(NamedTuple):
    """DoRA: what the rows or the columns of ``W + dW`` are multiplied with after their norm."""

    magnitude: Float[np.ndarray, "n"]
    """Per row; or, where the weight is stored transposed, the finished factor per column."""
    columns: bool


class Adder(Protocol):
    """Adds updates to slices of stored numbers of one type, and rounds to another."""

    def load(self, raw: np.ndarray, size: int, decode: Decode) -> Array:
        """Return the ``size`` numbers that stored bytes hold, as ``decode`` fills them in."""
        ...

    def add(
        self,
        wide: Array,
        left: Float[np.ndarray, "m r"],
        right: Float[np.ndarray, "r k"],
        gain: Gain | None = None,
    ) -> tuple[np.ndarray, Tally]:
        """Return the bytes of the rounded sum, good until the next call, and its tally."""
        ...

    def finish(self, wide: Array) -> np.ndarray:
        """Return the bytes of rounded numbers, good until the next call."""
        ...


class Host:
    """Adds on the host. Holds the buffers of one slice, which the next one uses again."""

    def __init__(self, size: int, target: str, kind: type[np.floating[Any]] | None = None) -> None:
        kind = kind or accumulator(target)
        self._target = target
        self._wide = np.empty(size, kind)
        self._delta = np.empty(size, kind)
        self._out = np.empty(size * WIDTH[target], np.uint8)
        self._sum, self._after = np.empty(size, kind), np.empty(size, kind)

    def load(self, raw: np.ndarray, size: int, decode: Decode) -> Array:
        """Return the numbers that stored bytes hold; good until the next call."""
        wide = self._wide[:size]
        decode(wide)
        return wide

    def add(
        self,
        wide: Array,
        left: Float[np.ndarray, "m r"],
        right: Float[np.ndarray, "r k"],
        gain: Gain | None = None,
    ) -> tuple[np.ndarray, Tally]:
        """Return the bytes of the rounded sum, good until the next call, and its tally."""
        if left.dtype != self._wide.dtype:  # see `narrowed`
            precise = Host(wide.size, self._target, np.float64)
            return precise.add(wide.astype(np.float64), left, right, gain)
        delta, total, after = (b[: wide.size] for b in (self._delta, self._sum, self._after))
        np.matmul(left, right, out=delta.reshape(len(left), -1))
        if gain:
            normalise(wide, delta, gain, len(left))
        np.add(wide, delta, out=total)
        out = self.finish(total)  # leaves in `after` what it has rounded to
        after -= wide
        return out, tally(delta, after, total)

    def finish(self, wide: Array) -> np.ndarray:
        """Return the bytes of rounded numbers, good until the next call."""
        out = self._out[: wide.size * WIDTH[self._target]]
        round_into(wide, self._target, out, self._after[: wide.size])
        return out


class Device:
    """Adds on a device of torch. The same results as `Host`, up to the order of products.

    Numbers of the dtype ``source`` are widened there; what is encoded is decoded on the host.
    """

    def __init__(self, device: str, source: str | None, target: str) -> None:
        import torch

        placed(np.empty(0, np.float32), device)  # refused before anything is added
        self._device = device
        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
        self._stored: torch.dtype | None = getattr(torch, names[source]) if source else None
        self._code = target
        self._target: torch.dtype = getattr(torch, names[target])
        self._kind = torch.float32 if accumulator(target) == np.float32 else torch.float64

    @exact()
    def load(self, raw: np.ndarray, size: int, decode: Decode) -> Array:
        """Return the numbers that stored bytes hold, on the device."""
        if self._stored is not None:
            return tensor(raw).to(self._device).view(self._stored).to(self._kind)
        wide = np.empty(size, accumulator(self._code))
        decode(wide)
        return tensor(wide).to(self._device)

    @exact()
    def add(
        self,
        wide: Array,
        left: Float[np.ndarray, "m r"],
        right: Float[np.ndarray, "r k"],
        gain: Gain | None = None,
    ) -> tuple[np.ndarray, Tally]:
        """Return the bytes of the rounded sum, and its tally."""
        import torch

        low, high = (tensor(x).to(self._device) for x in (left, right))
        delta = (low @ high).reshape(-1)
        if gain:
            normalise(wide, delta, gain, len(left))
        total = wide + delta
        result = rounded_tensor(total, self._target)
        out = result.view(torch.uint8).cpu().numpy()
        return out, tally(delta, result.to(total.dtype) - wide)

    @exact()
    def finish(self, wide: Array) -> np.ndarray:
        """Return the bytes of rounded numbers."""
        import torch

        result: np.ndarray = rounded_tensor(wide, self._target).view(torch.uint8).cpu().numpy()
        return result


def narrowed(
    left: Float[np.ndarray, "m r"], right: Float[np.ndarray, "r k"], kind: type[np.floating[Any]]
) -> tuple[Float[np.ndarray, "m r"], Float[np.ndarray, "r k"]]:
    """Return factors in ``kind``, or in float64 where float32 would lose squares of their product.

    Raises `NonFiniteError` where float64 would, too.
    """
    columns = np.abs(left).max(0, initial=0.0)
    rows = np.abs(right).max(1, initial=0.0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        most = float((columns * rows).max(initial=0.0))
    if most:
        check_measurable(most)
    elif (columns.astype(bool) & rows.astype(bool)).any():
        check_measurable(float(columns.max()), float(rows.max()))
    lengths = np.concatenate([columns, rows, [most]])
    lengths = lengths[lengths > 0]
    near = (lengths > NEAR) & (lengths < 1 / NEAR)
    fits = kind == np.float64 or bool(near.all())
    wanted = kind if fits else np.float64
    return left.astype(wanted), right.astype(wanted)


def normalise(wide: Array, delta: Array, gain: Gain, rows: int) -> None:
    """Replace ``delta`` by ``gain * (wide + delta) - wide``, DoRA's update of these rows."""
    table = (wide + delta).reshape(rows, -1)
    factor: Array = gain.magnitude
    if not isinstance(table, np.ndarray):
        factor = tensor(factor).to(table)
    if gain.columns:
        table *= factor[None, :]
    else:
        table *= (factor / (table**2).sum(-1) ** 0.5)[:, None]
    delta[:] = table.reshape(-1)
    delta -= wide


def column_norms(
    wide: Float[np.ndarray, "m k"],
    left: Float[np.ndarray, "m r"],
    right: Float[np.ndarray, "r k"],
) -> Float[np.ndarray, "k"]:
    """Return the squared norms of the columns of ``W + left @ right``, in float64."""
    total = wide.astype(np.float64) + left.astype(np.float64) @ right.astype(np.float64)
    squares: Float[np.ndarray, k] = np.square(total, out=total).sum(0)
    return squares
