"""The order of rows under rotary embeddings: half a head apart, or in the interleaved RoPE layout.

A head of size d turns d / 2 pairs of rows. transformers keeps the two rows of a pair d / 2 apart,
(heads, 2, d / 2); Meta's own code, llama.cpp and torchtune keep them side by side,
(heads, d / 2, 2). Arrays pass through as values: numpy's and torch's alike.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_tools.errors import FormatError

if TYPE_CHECKING:
    from lora_tools.update import Array


@dataclass(frozen=True, slots=True)
class Paired:
    """The file has a module's rows in the interleaved RoPE layout, within each head."""

    heads: int | None
    """How many heads share the rows out; None: nothing says, so the file's order is kept."""


def paired(name: str, out: int, heads: int | None) -> Paired:
    """Return the order of a module of ``out`` rows; `FormatError` if heads do not share them."""
    if heads is not None and out % (2 * heads):
        raise FormatError(f"{name}: {out} rows are not those of {heads} heads").hint(
            "Check that the base model is the one of this adapter."
        )
    return Paired(heads)


def to_pairs(rows: "Array", heads: int) -> "Array":
    """Reorder the first axis from halves, transformers' order, to pairs.

    >>> from numpy import arange
    >>> to_pairs(arange(8), heads=2)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    return _swapped(rows, heads, (2, rows.shape[0] // heads // 2))


def to_halves(rows: "Array", heads: int) -> "Array":
    """Reorder the first axis from pairs to halves: the inverse of `to_pairs`."""
    return _swapped(rows, heads, (rows.shape[0] // heads // 2, 2))


def from_file(order: Paired | None, rows: "Array") -> "Array":
    """Return rows in transformers' order, or as they are where heads are unknown."""
    return rows if order is None or order.heads is None else to_halves(rows, order.heads)


def to_file(order: Paired | None, rows: "Array") -> "Array":
    """Return rows in the order of the file: the inverse of `from_file`."""
    return rows if order is None or order.heads is None else to_pairs(rows, order.heads)


def _swapped(rows: "Array", heads: int, pair: tuple[int, int]) -> "Array":
    shape = tuple(rows.shape)
    return rows.reshape(heads, *pair, *shape[1:]).swapaxes(1, 2).reshape(shape)
