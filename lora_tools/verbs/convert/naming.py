"""What a target calls the modules of a source, and which of them are split or stacked there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Format
from lora_tools.formats.flux import SWAPPED, Piece, heights, is_flux, pieces, place
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.kinds import PARTS, kinds_of
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.paths import component_of, is_known, split
from lora_tools.formats.sites import Linear
from lora_tools.formats.unet import is_xl, to_authors, to_diffusers
from lora_tools.linalg.blocks import Rows

BY_ROW = ("DoRA", "bias")
"""Kinds that a layer has by row, so that each part of it has its own."""
ROLES = tuple(PARTS[kind] for kind in BY_ROW)

PIPELINES = ("comfyui", "diffusers", "xlabs")
"""Formats in which every module is one of a pipeline's component."""


class Step(NamedTuple):
    """A module of the target, and the modules of the source that it is made of."""

    new: Module
    olds: tuple[Module, ...]
    rows: Rows | None = None
    """Ranges of the rows of the only module's B, in their new order; None: all, as they are."""
    starts: tuple[int, ...] = ()
    """The rows from which on each module stands, where several are stacked."""


def steps(manifest: Manifest, format: Format) -> list[Step]:
    """Return the modules under the names that the format gives them.

    Formats with a configuration beside the tensors hold one model: its component goes. Raises
    `UnsupportedError` for adapters of several models there.
    """
    if manifest.format == format.name:
        return [Step(module, (module,)) for module in manifest.modules]
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
    flux = format.names in ("authors", "trainers") and _is_flux(parts, manifest.base_model)
    stacks: dict[str, dict[int, Module]] = {}
    for module, (component, path) in zip(manifest.modules, parts, strict=True):
        found = place(path) if flux and component in ("", "transformer") else None
        if found and found.part is not None:
            stacks.setdefault(found.path, {})[found.part] = module
        elif found:
            yield _part(module, "diffusion_model", Piece(found.path, _turned(found.path, module)))
        elif format.names == "diffusers" and component == "diffusion_model":
            unet = to_diffusers(path)
            rest = [] if unet else pieces(path, module.out, module.inp)
            if unet:
                yield _named(module, f"unet.{unet}")
            elif rest:
                yield from (_part(module, "transformer", piece) for piece in rest)
            else:
                yield _named(module, module.name)
        elif format.names == "authors" and component in ("", "unet"):
            name = to_authors(path, xl=xl)
            yield _named(module, f"diffusion_model.{name}" if name else module.name)
        else:
            yield _named(module, module.name)
    for path, members in stacks.items():
        yield _stack(path, members)


def _is_flux(parts: Sequence[tuple[str, str]], base_model: str | None) -> bool:
    own = [path for component, path in parts if component == "transformer"]
    own += [p for component, p in parts if not component and component_of(p) != "text_encoder"]
    return bool(own) and is_flux(own, base_model)


def _named(module: Module, name: str) -> Step:
    return Step(replace(module, name=name), (module,))


def _turned(path: str, module: Module) -> Rows:
    half = module.out // 2
    return ((half, module.out), (0, half)) if path == SWAPPED else ((0, module.out),)


def _part(module: Module, component: str, piece: Piece) -> Step:
    name = f"{component}.{piece.path}"
    if piece.rows == ((0, module.out),):
        return _named(module, name)
    _check(module, "split", BY_ROW)
    out = sum(stop - start for start, stop in piece.rows)
    # As a pair of factors: what it is made of cannot be shared out.
    pair = module.resized(module.r)
    parts = {
        role: part._replace(spec=Spec(part.spec.dtype, (out,))) if role in ROLES else part
        for role, part in pair.parts.items()
    }
    return Step(replace(pair, name=name, out=out, parts=parts), (module,), piece.rows)


def _stack(path: str, members: dict[int, Module]) -> Step:
    """Return the step to a layer of the authors', whose parts the adapter need not all have."""
    found = dict(sorted(members.items()))
    for module in found.values():
        _check(module, "fused", BY_ROW[:1])
    widths = {module.inp for module in found.values()}
    if len(widths) > 1:
        raise FormatError(f"{path}: layers of {sorted(widths)} columns cannot be stacked")
    (inp,) = widths
    rows = heights(path, {part: module.out for part, module in found.items()}, inp)
    olds = tuple(found.values())
    name = f"diffusion_model.{path}"
    rank = sum(module.rank for module in olds)
    bare = Module(name, Linear(), sum(rows), inp, rank, None, False, {}, name, name)
    b, a = factor_shapes(bare)
    dtype = _widest({part.spec.dtype for old in olds for part in old.resized(old.r).parts.values()})
    parts: dict[Role, Part] = {
        "b": Part(f"{name}.b", Spec(dtype, b)),
        "a": Part(f"{name}.a", Spec(dtype, a)),
    }
    norms = [old.parts["magnitude"] for old in olds if "magnitude" in old.parts]
    if norms and len(norms) < len(rows):
        raise UnsupportedError(
            f"{path}: DoRA of {len(norms)} of the {len(rows)} layers that are fused there, whose"
            " other rows need norms, too"
        ).hint("Go on without: --drop DoRA")
    if norms:
        code = _widest({part.spec.dtype for part in norms})
        parts["magnitude"] = Part(f"{name}.magnitude", Spec(code, (sum(rows),)))
    starts = tuple(sum(rows[:part]) for part in found)
    return Step(replace(bare, parts=parts), olds, starts=starts)


def _check(module: Module, what: str, shared: Sequence[str]) -> None:
    """Raise `UnsupportedError` for what layers can share out or join no more than ``shared``."""
    if beyond := [kind for kind in kinds_of(module) if kind not in shared]:
        raise UnsupportedError(
            f"{module.name}: {', '.join(beyond)} of a layer that is {what}"
        ).hint(f"Go on without: {' '.join(f'--drop {kind!r}' for kind in beyond)}")


def _widest(codes: set[str]) -> str:
    """Return the element type that holds the numbers of all: float16 and bfloat16 need float32."""
    return codes.pop() if len(codes) == 1 else "F64" if "F64" in codes else "F32"
