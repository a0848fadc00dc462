"""The weights of a model as the weights of another are laid out, by the table of their family."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from lora_tools.architectures.index import Candidate, PathMatch, find
from lora_tools.architectures.layout import Dimensions, Numbers, RowLayout
from lora_tools.architectures.translation import Translated, translate, undecided
from lora_tools.errors import LoraToolsError
from lora_tools.files.dtypes import ORDER
from lora_tools.files.header import Spec
from lora_tools.matching.views import Matrix, Move, View


class _Tensor(NamedTuple):
    """A tensor of a module, by its family's table."""

    view: View
    match: PathMatch
    size: Dimensions


class Translations(NamedTuple):
    """The weights of a component as another dialect has them."""

    views: dict[str, View]
    """By path in the other dialect."""
    why: dict[str, str]
    """Why stored weights are in none of them, where that is known."""


def translated(
    views: Mapping[str, View],
    here: Candidate,
    there: str,
    numbers: Numbers,
    wanted: Mapping[str, Spec],
) -> Translations:
    """Return the weights that a component has in another dialect, each from the rows of ours.

    ``views`` are by path in the dialect ``here``, ``wanted`` the weights by path in the other one;
    those that cannot be made, or not as a whole, are missing.
    """
    found = Translations({}, {})
    for kind, tensors in _by_kind(views, here).items():
        sizes = {path: tensor.size for path, tensor in tensors.items()}
        try:
            targets = translate(sizes, here, there, numbers, kind).targets
        except LoraToolsError:
            bad = undecided(sizes, here, there, numbers, kind)
            found.why.update({tensors[path].view.key: str(why) for path, why in bad.items()})
            sizes = {path: size for path, size in sizes.items() if path not in bad}
            targets = translate(sizes, here, there, numbers, kind).targets
        for target in targets:
            name = f"{target.path}.{target.layout.named(kind)}".rstrip(".")
            if name in wanted and target.is_whole:
                view = _view(name, wanted[name], target, tensors)
                if view:
                    found.views[name] = view
    return found


def _by_kind(views: Mapping[str, View], here: Candidate) -> dict[str, dict[str, _Tensor]]:
    """Return the tensors by what they are to their fine modules, and by their modules' paths."""
    modules: dict[str, list[tuple[View, list[PathMatch]]]] = {}
    for path, view in views.items():
        if matches := list(find(path, here)):
            modules.setdefault(matches[0].path, []).append((view, matches))
    kinds: dict[str, dict[str, _Tensor]] = defaultdict(dict)
    for path, members in modules.items():
        # A bias has no columns of its own: whether a layout fits is its weight's to say.
        first = {v: size_in(v.spec.shape, matches[0].layout) for v, matches in members}
        inp = max(size.inp for size in first.values())
        for view, matches in members:
            match = next((m for m in matches if m.layout.fits(first[view]._replace(inp=inp))), None)
            if match is not None:
                kind = dict(match.layout.tensors).get(match.rest, match.rest)
                size = size_in(view.spec.shape, match.layout)
                kinds[kind][path] = _Tensor(view, match, size._replace(inp=inp))
    return kinds


def size_in(shape: Sequence[int], layout: RowLayout) -> Dimensions:
    """Return rows, columns and stack of a tensor of this shape; a vector has no columns."""
    stacked = layout.stacked and len(shape) > 1
    own = [*shape[1:]] if stacked else [*shape]
    if layout.transposed and len(own) == 2:
        own.reverse()
    if layout.shapes and len(own) >= len(layout.shapes[1]) - layout.shapes[1].count(-1):
        fine = [side or own[axis] for axis, side in enumerate(layout.shapes[1])]
        left = prod(own) // max(prod(side for side in fine if side != -1), 1)
        own = [left if side == -1 else side for side in fine]
    rest = prod(own[1:]) if len(own) > 1 else 0
    return Dimensions(own[0] if own else 1, rest, shape[0] if stacked else 1)


def _view(name: str, spec: Spec, target: Translated, tensors: Mapping[str, _Tensor]) -> View | None:
    """Return a weight of the other dialect as a view; None if it has another shape there."""
    sources = [tensors[piece.module] for piece in target.pieces]
    size, layout = target.size, target.layout
    there = size_in(spec.shape, layout)
    columns = {each.view.spec.numel / (each.size.out * each.size.stack) for each in sources}
    if (there.out, there.stack) != (size.out, size.stack) or columns != {
        spec.numel / (size.out * size.stack)
    }:
        return None
    first = sources[0].view
    alike = first.spec.shape == spec.shape and _turned(first.spec, sources[0].match.layout) == (
        _turned(spec, layout)
    )
    if target.source is not None and alike:
        return View(name, first.spec, first.key)
    moves = tuple(
        Move(
            each.view.key,
            Matrix(
                each.size.out,
                each.size.stack,
                piece.member,
                _turned(each.view.spec, each.match.layout),
            ),
            piece.rows,
            Matrix(size.out, size.stack, piece.into, _turned(spec, layout)),
            piece.at,
        )
        for piece, each in zip(target.pieces, sources, strict=True)
    )
    dtypes = {each.view.spec.dtype for each in sources}
    dtype = dtypes.pop() if len(dtypes) == 1 else max(dtypes, key=lambda code: ORDER[code])
    return View(name, Spec(dtype, spec.shape), first.key, moves)


def _turned(spec: Spec, layout: RowLayout) -> bool:
    return layout.transposed and len(spec.shape) - layout.stacked > 1
