"""Views: weights of a model under the names, and in the layout, of another dialect."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lora_tools.architectures.rows import Rows, paired
from lora_tools.base import Base, Weight
from lora_tools.base import Rows as RowReader
from lora_tools.files.header import Spec
from lora_tools.shapes import Float

BLOCK = 1 << 19
"""Elements that are read and widened at a time."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One of the matrices that a tensor holds, and how it lies there."""

    height: int
    """Its rows: those of the layer's output, whichever way it is stored."""
    stack: int = 1
    """How many matrices the tensor stacks."""
    member: int = 0
    """Which of them it is."""
    transposed: bool = False
    """Whether it is stored as (in, out)."""

    def of(self, array: Float[np.ndarray, "n"]) -> Float[np.ndarray, "out inp"]:
        """Return it as a view of the tensor's elements."""
        size = len(array) // self.stack
        part = array[self.member * size : (self.member + 1) * size]
        turned = part.reshape(-1, self.height).T if self.transposed else None
        matrix: Float[np.ndarray, "out inp"] = (
            part.reshape(self.height, -1) if turned is None else turned
        )
        return matrix


@dataclass(frozen=True, slots=True)
class Move:
    """Rows of a stored weight, and the rows of a view that they are."""

    key: str
    source: Matrix
    rows: Rows
    target: Matrix
    at: Rows


@dataclass(frozen=True, slots=True)
class View:
    """A weight under another name: the stored one itself, or made of rows of several."""

    name: str
    spec: Spec
    key: str
    """The stored weight; of several, the first."""
    moves: tuple[Move, ...] = ()
    """Where its rows come from; none: it is the stored weight."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a stored weight as it is."""
        return not self.moves

    @property
    def keys(self) -> tuple[str, ...]:
        """Every stored weight that it is made of."""
        return tuple(dict.fromkeys(move.key for move in self.moves)) or (self.key,)

    def weights(self, base: Base) -> list[Weight]:
        """Return the stored weights."""
        return [base[key] for key in self.keys]

    def blocks(
        self, base: Base, out: Float[np.ndarray, "n"]
    ) -> Iterator[tuple[Float[np.ndarray, "m k"], Float[np.ndarray, "m k"]]]:
        """Yield its numbers, a block of rows at a time, and the view of ``out`` that is its place.

        ``out`` has an element for each of the weight's, and the dtype in which they are read. A
        block is good until the next one; a matrix that is stored transposed is read as a whole.
        """
        height = self.spec.shape[0] if self.spec.shape else 1
        itself = Matrix(height)
        every = (range(height),)
        for move in self.moves or (Move(self.key, itself, every, itself, every),):
            place, weight = move.target.of(out), base[move.key]
            for rows, at in paired(move.rows, move.at):
                for numbers, first in _read(weight, move.source, rows, out.dtype):
                    run = at[first : first + len(numbers)]
                    yield numbers, place[run.start : run[-1] + 1 : run.step]


def _read(
    weight: Weight, matrix: Matrix, rows: range, dtype: np.dtype
) -> Iterator[tuple[Float[np.ndarray, "m k"], int]]:
    """Yield blocks of some rows of a matrix, each with the number of its first among them."""
    columns = weight.spec.numel // matrix.stack // matrix.height
    if matrix.transposed:
        with RowReader(weight, matrix.height) as reader:
            whole = np.empty(columns * matrix.height, dtype)
            start, stop = matrix.member * columns, (matrix.member + 1) * columns
            reader.decode(reader.raw(start, stop), start, stop, whole)
        yield whole.reshape(columns, matrix.height).T[rows.start : rows.stop : rows.step], 0
        return
    before = matrix.member * matrix.height
    many = max(BLOCK // max(columns, 1) // rows.step, 1)
    with RowReader(weight, columns) as reader:
        for first in range(0, len(rows), many):
            run = rows[first : first + many]
            start, stop = before + run.start, before + run[-1] + 1
            block = np.empty((stop - start) * columns, dtype)
            reader.decode(reader.raw(start, stop), start, stop, block)
            yield block.reshape(-1, columns)[:: run.step], first


def whole(base: Base, key: str, name: str = "") -> View:
    """Return a stored weight as a view."""
    return View(name or key, base.specs[key], key)
