"""Differences of biases and norms, which distilled models come with: updates of one column."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lora_tools.adapter import Adapter
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra, Module, Part, Role
from lora_tools.formats.sites import Linear
from lora_tools.matching import Matching, Piece, Site, match
from lora_tools.matching.pieces import Specs

BIAS = (".diff_b", ".b_norm")
WEIGHT = (".w_norm", ".diff")
KINDS = ("bias difference", "norm difference")


class Added(NamedTuple):
    """What is added to a vector of the base, as a module of one column, and to which rows."""

    module: Module
    pieces: tuple[Piece, ...]


def differences(
    adapter: Adapter,
    matching: Matching,
    sites: Mapping[str, Site | None],
    specs: Specs,
    config: Mapping[str, Any],
) -> dict[str, Added]:
    """Return the differences of an adapter that match vectors of a base, by the tensors' keys.

    A bias has the rows of its layer's weight, whatever layout both have. A norm is found by its
    family's table or by names.
    """
    extras = [extra for extra in adapter.manifest.extras if extra.kind in KINDS]
    layers = {module.key_prefix: module for module in adapter.manifest.modules}
    vectors: dict[str, Module] = {}
    found: dict[str, Added] = {}
    for extra in extras:
        prefix, ending = _split(extra)
        module = _vector(extra, prefix)
        site = sites.get(layers[prefix].name) if prefix in layers else None
        if ending in WEIGHT:
            vectors[extra.key] = module
        elif site and not site.misfit:
            found[extra.key] = Added(module, tuple(_of_biases(site, module.out)))
        elif key := matching.key(extra._replace(name=f"{prefix}.bias"), specs):
            found[extra.key] = Added(module, (Piece(key, 0, (range(module.out),), 0, False),))
    found |= _norms(adapter, vectors, specs, config)
    return {key: added for key, added in found.items() if _fits(added, specs)}


def _split(extra: Extra) -> tuple[str, str]:
    ending = next(end for end in (*BIAS, *WEIGHT) if extra.key.endswith(end))
    return extra.key.removesuffix(ending), ending


def _vector(extra: Extra, name: str) -> Module:
    parts: dict[Role, Part] = {"diff": Part(extra.key, extra.spec)}
    return Module(name, Linear(), extra.spec.numel, 1, 1, None, False, parts, name, name)


def _of_biases(site: Site, rows: int) -> Iterator[Piece]:
    for piece in site.pieces:
        key = piece.key.removesuffix("weight") + "bias"
        if piece.transposed:  # a bias has the order of the update's rows there, all of them
            piece = piece._replace(rows=(range(rows),), start=0, transposed=False)
        yield piece._replace(key=key)


def _norms(
    adapter: Adapter, vectors: Mapping[str, Module], specs: Specs, config: Mapping[str, Any]
) -> dict[str, Added]:
    """Return what is added to norms: vectors are matched as matrices of one column."""
    if not vectors:
        return {}
    columns = {
        key: Spec(spec.dtype, (*spec.shape, 1)) if len(spec.shape) == 1 else spec
        for key, spec in specs.items()
    }
    modules = (*adapter.manifest.modules, *vectors.values())
    whole = replace(adapter, manifest=replace(adapter.manifest, modules=modules, extras=()))
    sites = match(whole, columns, config).sites(columns)
    pairs = ((key, module, sites[module.name]) for key, module in vectors.items())
    return {key: Added(module, site.pieces) for key, module, site in pairs if site}


def _fits(added: Added, specs: Specs) -> bool:
    """Whether the base has these vectors, with rows for all that is added."""
    keys = {piece.key for piece in added.pieces}
    if not added.pieces or not all(key in specs and len(specs[key].shape) == 1 for key in keys):
        return False
    rows = sum(len(run) for piece in added.pieces for run in piece.rows)
    return rows == added.module.out and all(
        piece.start + sum(map(len, piece.rows)) <= specs[piece.key].shape[0]
        for piece in added.pieces
    )
