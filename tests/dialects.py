"""Whole checkpoints in another dialect of their family, by the tables alone."""

from collections import defaultdict
from math import prod

import numpy as np
import torch

from lora_tools.architectures.index import Candidate, find
from lora_tools.architectures.layout import Dimensions, fill
from lora_tools.architectures.rows import taken
from lora_tools.architectures.translation import translate

NUMBERS = {"heads": 4, "kv_heads": 2}
INP, RANK = 60, 3  # columns of which a third, a fourth and a fifth are whole


def size_for(layout, unit=8):
    """Return a size that a module of this layout may have."""
    if layout.ratio is not None:
        out = int(layout.ratio * INP)
    else:
        shares = [part.share for part in layout.parts]
        weights = [int(s) if s.isdigit() else NUMBERS.get(s, 0) for s in shares]
        out = shares.count("in") * INP + unit * sum(weights)
    return Dimensions(out, INP, 3 if layout.stacked else 1)


def modules_of(known, dialect):
    """Return a module for every rule of a dialect, with a size that fits it."""
    found, fine = {}, set()
    for rule in known.rules(dialect):
        first = rule.layout.parts[0].path, rule.layout.tensors
        if first in fine and not rule.layout.ratio:  # another name of the same module
            continue
        fine.add(first)
        path = fill(rule.path, ["1"] * rule.path.count("#"))
        if not rule.layout.has("weight") or rule.layout.role == "parameter":
            continue
        found.setdefault(path, size_for(rule.layout))
    return found


def converted(tensors, family, source, target, numbers=None):
    """Return a checkpoint of one dialect as another has it; KeyError for what no table has."""
    drops = family.drops.get(source, ())
    modules = {}  # by path: its tensors, each under its name in the hub
    for name, array in tensors.items():
        if name in drops:
            continue
        found = list(find(name, Candidate(family, source)))
        if not found:
            raise KeyError(f"{family.name} ({source}) has no {name}")
        modules.setdefault(found[0].path, (found, {}))[1][found[0].rest] = array
    kinds = defaultdict(dict)
    for path, (found, arrays) in modules.items():
        sizes = {rest: size(matrices(array, found[0].layout)) for rest, array in arrays.items()}
        inp = max((each.inp for each in sizes.values()), default=0)
        for rest, array in arrays.items():
            of = sizes[rest]._replace(inp=inp)
            match = next(match for match in found if match.layout.fits(of))
            kind = dict(match.layout.tensors).get(rest, rest)
            kinds[kind][path] = (of, matrices(array, match.layout))
    result = {}
    for kind, these in kinds.items():
        sizes = {path: of for path, (of, _) in these.items()}
        translation = translate(sizes, Candidate(family, source), target, numbers or {}, kind)
        assert not translation.unmatched, translation.unmatched[:5]
        arrays = {(p, i): a for p, (_, each) in these.items() for i, a in enumerate(each)}
        for each in translation.targets:
            assert each.is_whole, (each.path, "lacks rows")
            name = f"{each.path}.{each.layout.named(kind)}".rstrip(".")
            result[name] = stored(assemble(each, arrays), each.layout)
    return result


def size(arrays):
    """Return the size of a module of these matrices; of vectors and scalars, without columns."""
    shape = arrays[0].shape
    return Dimensions(
        shape[0] if shape else 1, prod(shape[1:]) if len(shape) > 1 else 0, len(arrays)
    )


def numbers_in(state):
    """Return a model's tensors as numpy's."""
    return {key: value.detach().float().numpy().copy() for key, value in state.items()}


def tensors_of(arrays):
    """Return numpy's arrays as torch's."""
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}


def randomised(model):
    """Return a model whose parameters are random, so that no two of them are equal."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def assert_equal(found, wanted):
    """Compare names, shapes and every bit."""
    assert set(found) == set(wanted), (
        sorted(set(found) - set(wanted))[:5],
        sorted(set(wanted) - set(found))[:5],
    )
    for key, array in wanted.items():
        assert found[key].shape == array.shape, key
        assert np.array_equal(found[key], array), key


def assemble(target, arrays):
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


def matrices(tensor, layout):
    """Return a coarse module's tensor as the matrices it stacks, in (out, in) and fine shapes."""
    found = list(tensor) if layout.stacked else [tensor]
    if layout.transposed:
        found = [array.T if array.ndim > 1 else array for array in found]
    return [_shaped(array, layout.shapes[1]) if layout.shapes else array for array in found]


def stored(arrays, layout):
    """Return matrices as the coarse module's tensor has them: the inverse of `matrices`."""
    found = [_shaped(array, layout.shapes[0]) if layout.shapes else array for array in arrays]
    if layout.transposed:
        found = [array.T if array.ndim > 1 else array for array in found]
    return _library(found[0]).stack(found) if layout.stacked else found[0]


def _shaped(array, shape):
    """Return an array in a shape of which 0 keeps a side and -1 is what is left."""
    if 0 in shape and array.ndim < 2:
        return array  # a bias beside a kernel
    return array.reshape([side or array.shape[axis] for axis, side in enumerate(shape)])


def _zeros(out, like):
    shape = (out, *like.shape[1:])
    if hasattr(like, "new_zeros"):
        return like.new_zeros(shape)
    return _library(like).zeros(shape, like.dtype)


def _library(array):
    return np if hasattr(array, "astype") else torch
