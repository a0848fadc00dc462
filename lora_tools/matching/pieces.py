"""Pieces: the rows of a base that a module's update is added to, by names and shapes alone.

Files and models name the same weights differently. An adapter that addresses stacked experts may
meet a base with a weight per expert; one with q, k and v apart a base that fuses them; each the
other way round. Only layouts in which rows follow one another are known here. Interleaved ones
(GPT-NeoX's ``query_key_value``) are never guessed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lora_tools.architectures.conventions import (
    DOWN,
    FUSED,
    GATE_UP,
    PEFT_TRANSPOSED,
    RENAMED,
    STACKS,
)
from lora_tools.architectures.conventions import TRANSPOSED_EXPERTS as TRANSPOSED
from lora_tools.architectures.rows import Rows
from lora_tools.errors import FormatError
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Embedding, Experts, Linear
from lora_tools.matching.prefixes import Prefix

Specs = Mapping[str, Spec]

EXPERT = re.compile(r"(.*\.experts)\.(\d{1,9})\.(\w+)")


class Piece(NamedTuple):
    """Some rows of one update of a module, and the rows of a base weight that they belong to.

    A weight of more than two dimensions is read as the matrix of its leading dimensions by its
    rest: stacked experts by their rows, a convolution by its output channels.
    """

    key: str
    part: int
    """Which update of the stack."""
    rows: Rows
    """The rows of the update, or its columns where it is transposed, in the weight's order."""
    start: int
    """The first row of the weight."""
    transposed: bool


class Site(NamedTuple):
    """A place for a module: its pieces, or the weight that has another shape."""

    pieces: tuple[Piece, ...]
    misfit: str | None = None


def names(module: Module) -> Iterator[str]:
    """Yield names under which a base may hold a module's weight, or the first part of it."""
    for name in _namings(module.name):
        if isinstance(module.site, Experts):
            yield name
            for first, *_ in (*GATE_UP, *DOWN):
                yield f"{name.rpartition('.')[0]}.0.{first}.weight"
            continue
        yield f"{name}.weight"
        yield f"{name}.in_proj_weight"
        parent, _, leaf = name.rpartition(".")
        for first, *_ in FUSED.get(leaf, ()):
            yield f"{parent}.{first}.weight"
        for fused, ways in FUSED.items():
            if any(leaf in parts for parts in ways):
                yield f"{parent}.{fused}" + ("" if fused.endswith("weight") else ".weight")
        if match := EXPERT.fullmatch(name):
            yield from (f"{match[1]}.{stack}" for stack in STACKS)


def find(module: Module, prefix: Prefix, specs: Specs, config: Mapping[str, Any]) -> Site | None:
    """Return where a module belongs, or None if the base has no such weight.

    ``config`` is the adapter's and the base's, for what shapes leave open. Raises `FormatError`
    where they do, too.
    """
    misfit = None
    for naming in _namings(module.name):
        name = prefix(naming)
        if name is None:
            continue
        if isinstance(module.site, Experts):
            ways: tuple[Site | None, ...] = (
                _stacked(module, name, specs, config),
                _per_expert(module, name, specs, config),
            )
        else:
            ways = (
                _plain(module, name, specs),
                _split(module, name, specs),
                _fused(module, name, specs),
                _expert_of_stack(module, name, specs, config),
            )
        for site in ways:
            if site and site.pieces:
                return site
            misfit = misfit or (site and site.misfit)
    return Site((), misfit) if misfit else None


def _namings(name: str) -> Iterator[str]:
    yield name
    for new, old in RENAMED:
        for here, there in ((new, old), (old, new)):
            if here in name:
                yield name.replace(here, there)


def _whole(module: Module, key: str, *, transposed: bool) -> Site:
    rows = range(module.inp if transposed else module.out)
    return Site(
        tuple(Piece(key, i, (rows,), i * len(rows), transposed) for i in range(module.stack))
    )


def exact(module: Module, specs: Specs, name: str = "") -> Site | None:
    """Return the weight that has the module's shape and name, or the one given; None if none has.

    Stacks of experts have none: which of their axes are which is a question of its own.
    """
    if isinstance(module.site, Experts):
        return None
    site = _plain(module, name or module.name, specs)
    return site if site and site.pieces else None


def _plain(module: Module, name: str, specs: Specs) -> Site | None:
    key = next((k for k in (f"{name}.weight", f"{name}.in_proj_weight") if k in specs), None)
    if key is None:
        return None
    shape = specs[key].shape
    if shape != module.shape:
        return Site((), key)
    match module.site:
        case Embedding():
            return _whole(module, key, transposed=True)
        case Linear(transposed=transposed):
            return _whole(module, key, transposed=transposed)
        case _:
            return _whole(module, key, transposed=False)


def _stacked(module: Module, key: str, specs: Specs, config: Mapping[str, Any]) -> Site | None:
    if key not in specs:
        return None
    shape, count = specs[key].shape, module.stack
    if count == 1 and shape == (module.out, module.inp):  # a parameter that is one matrix
        return _whole(module, key, transposed=False)
    if shape[:1] != (count,) or len(shape) != 3:
        return Site((), key)
    turned = _is_turned(module, key, shape[1:], config)
    return Site((), key) if turned is None else _whole(module, key, transposed=turned)


def _is_turned(
    module: Module, key: str, shape: tuple[int, ...], config: Mapping[str, Any]
) -> bool | None:
    """Whether the matrices of experts hold the transposes of updates; None: they do not fit."""
    if shape == (module.out, module.inp):
        return _square(key, config) if module.out == module.inp else False
    return True if shape == (module.inp, module.out) else None


def _square(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a stack of square matrices holds the transposes: only PEFT's version tells.

    Until 0.18 A always read dimension 1 of the weight, in 0.19.0 by mistake unless the weight is
    stored transposed, and since then its input (`ParamWrapper` in tuners/lora/layer.py). Versions
    in development between these releases had the rule of the one or of the other.
    """
    version = str(config.get("peft_version") or "")
    numbers = tuple(int(n) for n in re.findall(r"\d{1,9}", version)[:3])
    between = ".dev" in version and (0, 18, 1) <= numbers <= (0, 19, 1)
    if not numbers or between:
        silent = "the adapter does not say which PEFT wrote it"
        why = f"the adapter says PEFT {version}, of which there were several" if numbers else silent
        raise FormatError(
            f"{key} is square, and {why}: its input and output cannot be told apart"
        ).hint('Set "peft_version" in adapter_config.json to the release it was closest to.')
    stored = str(config.get("model_type")) in PEFT_TRANSPOSED
    if numbers >= (0, 19, 1):
        return stored
    return not stored if numbers >= (0, 19) else True


def _per_expert(module: Module, name: str, specs: Specs, config: Mapping[str, Any]) -> Site | None:
    parent, _, leaf = name.rpartition(".")
    for parts in STACKS.get(leaf, ()):
        first = [f"{parent}.0.{part}.weight" for part in parts]
        if first[0] not in specs:
            continue
        shapes = [specs[key].shape for key in first if key in specs]
        stacked = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        turned = _is_turned(module, f"{parent}.{leaf}", stacked, config)
        pieces: list[Piece] = []
        for expert in range(module.stack):
            keys = [f"{parent}.{expert}.{part}.weight" for part in parts]
            found = _parts(module, keys, specs, expert, turned=bool(turned))
            if not found.pieces:
                return found
            pieces += found.pieces
        more = f"{parent}.{module.stack}.{parts[0]}.weight"
        return Site((), more) if more in specs else Site(tuple(pieces))
    return None


def _split(module: Module, name: str, specs: Specs) -> Site | None:
    parent, _, leaf = name.rpartition(".")
    for parts in FUSED.get(leaf, ()):
        keys = [f"{parent}.{part}.weight" for part in parts]
        if all(key in specs for key in keys) and not _turned(module):
            return _parts(module, keys, specs, 0)
    return None


def _parts(
    module: Module, keys: list[str], specs: Specs, number: int, *, turned: bool = False
) -> Site:
    """Allocate the rows of one update, or its columns, to weights in their order."""
    pieces, row = [], 0
    height, width = (module.inp, module.out) if turned else (module.out, module.inp)
    for key in keys:
        spec = specs.get(key)
        if spec is None or len(spec.shape) != 2 or spec.shape[1] != width:
            return Site((), key)
        pieces.append(Piece(key, number, (range(row, row + spec.shape[0]),), 0, turned))
        row += spec.shape[0]
    return Site(tuple(pieces)) if row == height else Site((), keys[-1])


def _fused(module: Module, name: str, specs: Specs) -> Site | None:
    """Place a part into a fused weight: the sizes of the others follow from the whole."""
    parent, _, leaf = name.rpartition(".")
    for fused, ways in FUSED.items():
        key = f"{parent}.{fused}" + ("" if fused.endswith("weight") else ".weight")
        parts = next((parts for parts in ways if leaf in parts), None)
        if parts is None or key not in specs or _turned(module):
            continue
        shape = specs[key].shape
        if len(shape) != 2 or shape[1] != module.inp:
            return Site((), key)
        start = _start(parts.index(leaf), len(parts), module.out, shape[0])
        if start is None:
            return Site((), key)
        return Site((Piece(key, 0, (range(module.out),), start, False),))
    return None


def _start(position: int, count: int, out: int, rows: int) -> int | None:
    if count == 2:
        return position * out if 2 * out == rows else None
    # q, then k and v of one size
    start = (0, rows - 2 * out, rows - out)[position]
    fits = (rows - out) % 2 == 0 and out < rows if position == 0 else 2 * out < rows
    return start if fits else None


def _expert_of_stack(
    module: Module, name: str, specs: Specs, config: Mapping[str, Any]
) -> Site | None:
    match = EXPERT.fullmatch(name)
    if match is None or _turned(module):
        return None
    parent, expert, leaf = match[1], int(match[2]), match[3]
    for fused, ways in STACKS.items():
        parts = next((parts for parts in ways if leaf in parts), None)
        key = f"{parent}.{fused}"
        if parts is None or key not in specs:
            continue
        shape, high = specs[key].shape, module.out * len(parts)
        turned = str(config.get("model_type")) in TRANSPOSED
        if turned or len(shape) != 3 or shape[1:] != (high, module.inp) or expert >= shape[0]:
            return Site((), key)
        start = expert * high + parts.index(leaf) * module.out
        return Site((Piece(key, 0, (range(module.out),), start, False),))
    return None


def _turned(module: Module) -> bool:
    return module.site != Linear(transposed=False)
