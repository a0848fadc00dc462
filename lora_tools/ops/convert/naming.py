"""What a target calls the modules of a source, and which rows of them it has under each name."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from lora_tools.errors import UnsupportedError
from lora_tools.formats.base import Format
from lora_tools.formats.flux import Piece, pieces
from lora_tools.formats.kinds import kinds_of
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.paths import is_known, split
from lora_tools.formats.sites import Linear
from lora_tools.formats.unet import is_xl, to_authors, to_diffusers

PIPELINES = ("comfyui", "diffusers", "xlabs")
"""Formats in which every module is one of a pipeline's component."""

Rows = tuple[tuple[int, int], ...]


class Step(NamedTuple):
    """A module of the source, and what becomes of it or of some of its rows."""

    old: Module
    new: Module
    rows: Rows | None = None
    """Ranges of the rows of B, in their new order; None: all, as they are."""


def steps(manifest: Manifest, format: Format) -> list[Step]:
    """Return the modules under the names that the format gives them.

    Formats with a configuration beside the tensors hold one model: its component goes. Raises
    `UnsupportedError` for adapters of several models there.
    """
    found = list(_translated(manifest, format))
    parts = [split(step.new.name) for step in found]
    components = {component for component, _ in parts}
    if not format.config_file or components == {""}:
        return found
    if manifest.format not in PIPELINES and not all(is_known(path) for _, path in parts):
        return found  # a model of its own may begin its paths with such a word
    if len(components) > 1:
        raise UnsupportedError(
            f"{format.name} holds one model, the adapter {', '.join(sorted(components))}"
        )
    return [s._replace(new=replace(s.new, name=split(s.new.name)[1])) for s in found]


def _translated(manifest: Manifest, format: Format) -> Iterator[Step]:
    parts = [split(module.name) for module in manifest.modules]
    xl = is_xl([path for component, path in parts if component == "unet"])
    for module, (component, path) in zip(manifest.modules, parts, strict=True):
        if format.names == "diffusers" and component == "diffusion_model":
            unet = to_diffusers(path)
            rest = [] if unet else pieces(path, module.out, module.inp)
            if unet:
                yield Step(module, replace(module, name=f"unet.{unet}"))
            elif rest:
                yield from (_part(module, piece) for piece in rest)
            else:
                yield Step(module, module)
        elif format.names == "authors" and component in ("", "unet"):
            name = to_authors(path, xl=xl)
            yield Step(module, replace(module, name=f"diffusion_model.{name}") if name else module)
        else:
            yield Step(module, module)


def _part(module: Module, piece: Piece) -> Step:
    name = f"transformer.{piece.path}"
    if piece.rows == ((0, module.out),):
        return Step(module, replace(module, name=name))
    if module.site != Linear() or kinds_of(module):
        what = ", ".join(kinds_of(module))
        raise UnsupportedError(f"{module.name}: {what} of a layer that is split")
    out = sum(stop - start for start, stop in piece.rows)
    # As a pair of factors: what it is made of cannot be shared out.
    pair = replace(module.resized(module.r), name=name)
    return Step(module, replace(pair, out=out), piece.rows)
