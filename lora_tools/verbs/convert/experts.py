"""Experts of an adapter as a base has them: one by one in its file, or stacked in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.architectures.loading import EXPERT, kinds_of, loaded
from lora_tools.architectures.rows import Rows, count
from lora_tools.errors import UnsupportedError, some
from lora_tools.files.header import Spec
from lora_tools.formats.features import features_of
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Module, Part
from lora_tools.formats.sites import Experts, Linear, Site
from lora_tools.matching import Piece, match
from lora_tools.matching.experts import stacked
from lora_tools.matching.views import View
from lora_tools.model import Model
from lora_tools.rewrite.experts import Grouping, Layer, Member, Stack
from lora_tools.rewrite.source import Made, Origin


class Regrouped(NamedTuple):
    """A module to be written, and what it is made of."""

    module: Module
    origin: Made


class _Slot(NamedTuple):
    """A place in a stack: what the stack is called, its shape, which expert, which rows."""

    name: str
    shape: tuple[int, ...]
    number: int
    rows: Rows


def regrouped(
    adapter: Adapter, modules: Sequence[Module], base: Model, grouping: Grouping
) -> list[Regrouped]:
    """Return modules with their experts as asked for, by the base's names; reads no tensor.

    Raises `UnsupportedError` for experts that the base does not have in that way, and what matching
    raises.
    """
    specs = base.tensors.specs
    sites = match(adapter, specs, base.config).sites(specs)
    found: list[Regrouped] = []
    pieces: dict[str, tuple[Piece, ...]] = {}
    for module in modules:
        site = sites[module.name]
        if site is None or site.misfit:
            raise UnsupportedError(f"{adapter.path}: {module.name} has no weight in {base.path}")
        pieces[module.name] = site.pieces
    if grouping == "split":
        for module in modules:
            found += _split(module, pieces[module.name], base)
    else:
        found += _stacked(modules, pieces, base)
    return found


def _split(module: Module, pieces: Sequence[Piece], base: Model) -> Iterator[Regrouped]:
    if not isinstance(module.site, Experts):
        yield Regrouped(module, Origin((module,)))
        return
    if module.stack > 1 and not all(EXPERT.fullmatch(piece.key) for piece in pieces):
        raise UnsupportedError(
            f"{module.name}: {base.path} has its experts in one tensor, {pieces[0].key}, and no"
            " names for them one by one"
        )
    kinds = kinds_of(base.config)
    for piece in pieces:
        if not piece.key.endswith(".weight"):
            raise UnsupportedError(f"{module.name}: {piece.key} is the weight of no layer")
        out = count(piece.rows)
        name = piece.key.removesuffix(".weight")
        # Behind what stands before the adapter's own paths, where that is more than the base's.
        there = loaded(piece.key, kinds)
        match_, own = EXPERT.fullmatch(there), module.name.rpartition(".")[0]
        if match_ and own.endswith(match_["experts"]):
            name = own.removesuffix(match_["experts"]) + name
        inp = module.out if piece.transposed else module.inp
        new = _pair(module, name, Linear(), out, inp, module.rank)
        yield Regrouped(new, Member(module, piece.part, piece.rows, piece.transposed))


def _stacked(
    modules: Sequence[Module], pieces: dict[str, tuple[Piece, ...]], base: Model
) -> Iterator[Regrouped]:
    slots = _slots(base)
    layers: dict[str, list[tuple[Layer, _Slot]]] = {}
    kinds = kinds_of(base.config)
    for module in modules:
        slot = _slot(module, pieces[module.name], slots, base)
        if slot is None:
            name = loaded(f"{module.name}.weight", kinds).removesuffix(".weight")
            same = name == module.name
            new = module if same else replace(module, name=name, key_prefix=name, owner=name)
            yield Regrouped(new, Origin((module,)))
            continue
        if beyond := features_of(module):
            raise UnsupportedError(
                f"{module.name}: {', '.join(beyond)} of a layer that becomes part of a stack"
            ).hint(f"Leave it out: {' '.join(f'--drop {each!r}' for each in beyond)}")
        layers.setdefault(slot.name, []).append((Layer(module, slot.number, slot.rows), slot))
    if layers and (stacks := [module.name for module in modules if module.stack > 1]):
        raise UnsupportedError(f"{some(stacks)}: stacks already, beside experts one by one")
    for name, parts in layers.items():
        experts, high, columns = parts[0][1].shape
        first = parts[0][0].module
        ranks: dict[int, int] = {}
        for layer, _ in parts:
            ranks[layer.number] = ranks.get(layer.number, 0) + layer.module.rank
        site = Experts(name.rpartition(".")[2], experts)
        new = _pair(first, name, site, high, columns, max(ranks.values()))
        yield Regrouped(new, Stack(tuple(layer for layer, _ in parts)))


def _slots(base: Model) -> dict[str, _Slot]:
    """Return the place of each weight of an expert in the stacks that transformers makes."""
    kinds = kinds_of(base.config)
    views = {}
    for key, spec in base.tensors.specs.items():
        name = loaded(key, kinds)
        views[name] = View(name, spec, key)
    return {
        move.key: _Slot(view.name, view.spec.shape, move.target.member, move.at)
        for view in stacked(views).values()
        for move in view.moves
    }


def _slot(
    module: Module, pieces: Sequence[Piece], slots: dict[str, _Slot], base: Model
) -> _Slot | None:
    """Return where a module lies in a stack; None if it is no layer of an expert."""
    if isinstance(module.site, Experts) or len(pieces) != 1:
        return None
    piece = pieces[0]
    if slot := slots.get(piece.key):
        own, there = EXPERT.fullmatch(f"{module.name}.weight"), slot.name
        if own:
            before = loaded(own["experts"], kinds_of(base.config))
            there = f"{before}.{slot.name.rpartition('.')[2]}"
        return slot._replace(name=there)
    shape = base.tensors.specs[piece.key].shape
    if EXPERT.fullmatch(piece.key):
        raise UnsupportedError(
            f"{module.name}: transformers makes no stack of {piece.key}, of which an expert lacks"
            " its like or has it in another shape"
        )
    if not EXPERT.fullmatch(f"{module.name}.weight") or len(shape) != 3:
        return None
    number, row = divmod(piece.start, shape[1])
    return _Slot(piece.key, shape, number, (range(row, row + module.out),))


def _pair(like: Module, name: str, site: Site, out: int, inp: int, rank: int) -> Module:
    """Return a module as a pair of factors of these sizes, with another's alpha and dtype."""
    bare = replace(
        like, name=name, site=site, out=out, inp=inp, rank=rank, key_prefix=name, owner=name
    )
    b, a = factor_shapes(bare)
    dtype = like.dtype
    return replace(
        bare,
        parts={"b": Part(f"{name}.b", Spec(dtype, b)), "a": Part(f"{name}.a", Spec(dtype, a))},
        rows=None,
        fused=None,
    )


def check_any(adapter: Adapter, found: Sequence[Regrouped], grouping: Grouping) -> None:
    """Raise `UnsupportedError` if nothing has changed: there are no such experts."""
    if all(isinstance(each.origin, Origin) for each in found):
        names = [each.module.name for each in found]
        other = "in stacks" if grouping == "split" else "one by one"
        raise UnsupportedError(f"{adapter.path}: no experts that are {other}: {some(names, 2)}")
