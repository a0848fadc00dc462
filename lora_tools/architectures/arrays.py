"""Layouts at work on arrays, numpy's and torch's alike: nothing is computed, rows only move."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.layout import RowLayout
from lora_tools.architectures.rows import Rows
from lora_tools.architectures.translation import Translated

if TYPE_CHECKING:
    from lora_tools.update import Array


def taken(array: "Array", rows: Rows) -> "Array":
    """Return these rows of the first axis; a view where they are one run."""
    runs = [array[run.start : run.stop : run.step] for run in rows]
    return runs[0] if len(runs) == 1 else _library(array).concatenate(runs)


def assemble(target: Translated, arrays: Mapping[tuple[str, int], "Array"]) -> list["Array"]:
    """Return each matrix of a target from the source's, by module and member of its stack.

    Rows that the source lacks are zero. Vectors, matrices and kernels move by their first axis.
    """
    result = []
    for member in range(target.size.stack):
        pieces = [piece for piece in target.pieces if piece.into == member]
        given = [arrays[piece.module, piece.member] for piece in pieces]
        if len(pieces) == 1 and pieces[0].at == (range(target.size.out),):
            result.append(taken(given[0], pieces[0].rows))
            continue
        whole = _zeros(target.size.out, next(iter(given or arrays.values())))
        for piece, array in zip(pieces, given, strict=True):
            start = 0
            moved = taken(array, piece.rows)
            for run in piece.at:
                whole[run.start : run.stop : run.step] = moved[start : start + len(run)]
                start += len(run)
        result.append(whole)
    return result


def matrices(tensor: "Array", layout: RowLayout) -> list["Array"]:
    """Return a coarse module's tensor as the matrices it stacks, in (out, in) and fine shapes."""
    found = list(tensor) if layout.stacked else [tensor]
    if layout.transposed:
        found = [array.T if array.ndim > 1 else array for array in found]
    return [_shaped(array, layout.shapes[1]) if layout.shapes else array for array in found]


def stored(arrays: Sequence["Array"], layout: RowLayout) -> "Array":
    """Return matrices as the coarse module's tensor has them: the inverse of `matrices`."""
    found = [_shaped(array, layout.shapes[0]) if layout.shapes else array for array in arrays]
    if layout.transposed:
        found = [array.T if array.ndim > 1 else array for array in found]
    return _library(found[0]).stack(found) if layout.stacked else found[0]


def _shaped(array: "Array", shape: tuple[int, ...]) -> "Array":
    """Return an array in a shape of which 0 keeps a side and -1 is what is left."""
    if 0 in shape and array.ndim < 2:
        return array  # a bias beside a kernel
    return array.reshape([side or array.shape[axis] for axis, side in enumerate(shape)])


def _zeros(out: int, like: Any) -> Any:
    shape = (out, *like.shape[1:])
    if hasattr(like, "new_zeros"):
        return like.new_zeros(shape)
    return _library(like).zeros(shape, like.dtype)


def _library(array: Any) -> Any:
    if hasattr(array, "astype"):
        import numpy

        return numpy
    import torch  # the array is torch's own

    return torch
