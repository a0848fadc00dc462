"""Flux: its authors' fused layers, and the separate ones that diffusers has for them.

What corresponds to what: diffusers' `convert_flux_to_diffusers` and sd-scripts' `flux_utils`.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from lora_tools.errors import FormatError

DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
}
SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear"}
ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    **{
        f"{ours}_in.{layer}": f"time_text_embed.{theirs}_embedder.linear_{number}"
        for ours, theirs in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    },
}
FUSED: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
SINGLE_FUSED = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
SWAPPED = "final_layer.adaLN_modulation.1"
BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
THEIRS = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
BLOCKS = {"double": 19, "single": 38}
"""How many there are. HunyuanVideo's have the same names in diffusers, and are 20 and 40."""


class Piece(NamedTuple):
    """Rows of a layer that are one of diffusers' layers: ranges, in the order that it has them."""

    path: str
    rows: tuple[tuple[int, int], ...]


def pieces(path: str, out: int, inp: int) -> list[Piece]:
    """Return the layers that a layer of ``out`` rows is in diffusers; none if it is not Flux's.

    diffusers normalises by scale and shift where the authors have shift and scale: the halves of
    the last modulation change places. Raises `FormatError` if the rows cannot be shared out.

    >>> [piece.path for piece in pieces("double_blocks.3.img_attn.proj", 8, 8)]
    ['transformer_blocks.3.attn.to_out.0']
    >>> pieces("double_blocks.3.txt_attn.qkv", 24, 8)[2]
    Piece(path='transformer_blocks.3.attn.add_v_proj', rows=((16, 24),))
    """
    if path in ENDS:
        return [Piece(ENDS[path], ((0, out),))]
    if path == SWAPPED:
        return [Piece("norm_out.linear", ((out // 2, out), (0, out // 2)))]
    match = BLOCK.fullmatch(path)
    if match is None:
        return []
    kind, number, layer = match.groups()
    block = f"{'single_' if kind == 'single' else ''}transformer_blocks.{number}."
    known = DOUBLE if kind == "double" else SINGLE
    if layer in known:
        return [Piece(block + known[layer], ((0, out),))]
    sizes: list[int]
    names: tuple[str, ...]
    if kind == "double" and layer in FUSED:
        sizes, names = [out // 3] * 3, FUSED[layer]
    elif kind == "single" and layer == "linear1":
        sizes, names = [inp] * 3 + [out - 3 * inp], SINGLE_FUSED
    else:
        return []
    if sum(sizes) != out or min(sizes) < 1:
        raise FormatError(f"{path}: {out} rows are not those of {', '.join(names)}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Piece(block + name, ((start, start + size),))
        for name, start, size in zip(names, starts, sizes, strict=True)
    ]


class Place(NamedTuple):
    """Where one of diffusers' layers is in the authors' model."""

    path: str
    part: int | None = None
    """Which of the layers that are stacked there it is; None: it is all of them."""


def place(path: str) -> Place | None:
    """Return the authors' layer that one of diffusers' is, or is a part of; None if not Flux's.

    >>> place("transformer_blocks.3.attn.add_v_proj")
    Place(path='double_blocks.3.txt_attn.qkv', part=2)
    """
    if path == "norm_out.linear":
        return Place(SWAPPED)
    for ours, theirs in ENDS.items():
        if path == theirs:
            return Place(ours)
    match = THEIRS.fullmatch(path)
    if match is None:
        return None
    kind, layer = "single" if match[1] else "double", match[3]
    if int(match[2]) >= BLOCKS[kind]:
        return None
    block = f"{kind}_blocks.{match[2]}."
    for ours, theirs in (SINGLE if kind == "single" else DOUBLE).items():
        if layer == theirs:
            return Place(block + ours)
    fused = {"linear1": SINGLE_FUSED} if kind == "single" else FUSED
    for ours, parts in fused.items():
        if layer in parts:
            return Place(block + ours, parts.index(layer))
    return None


def is_flux(paths: Collection[str], base_model: str | None) -> bool:
    """Whether diffusers' paths are those of Flux, or of a model with Flux's layers.

    All have to be; and since Stable Diffusion 3 and Qwen-Image have the names of the double blocks,
    a single block, the embedding of a guidance or the base model's name has to tell.
    """
    single = any(path.startswith(("single_", "time_text_embed.guidance")) for path in paths)
    named = "flux" in (base_model or "").lower()
    return (single or named) and all(place(path) for path in paths)


def heights(path: str, parts: Mapping[int, int], inp: int) -> list[int]:
    """Return how many rows each of the layers has that are stacked in one of the authors'.

    ``parts`` are those that are known. Queries, keys and values are as high as each other, and in
    a single block as wide as what goes in; what goes beside them into its MLP is four times that.
    Raises `FormatError` if the known ones are otherwise.
    """
    if path.endswith("linear1"):
        found = [inp, inp, inp, parts.get(3, 4 * inp)]
    else:
        found = [next(iter(parts.values()))] * 3
    if any(found[part] != out for part, out in parts.items()):
        raise FormatError(f"{path}: layers of {sorted(parts.values())} rows cannot be stacked")
    return found
