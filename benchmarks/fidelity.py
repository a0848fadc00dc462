"""How far one adapter is from another, by the files alone; shares no code with lora_tools."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor


class Distance(NamedTuple):
    """Relative Frobenius distances of one adapter's update from another's."""

    whole: float  # of all modules together
    worst: float  # of the worst module
    optimum: float  # of all modules together, for the best adapter of the same ranks (Eckart-Young)


def distance(source: Path, scale: float, other: Path, other_scale: float) -> Distance:
    """Compare two files of weights: ``||s B A - s' B' A'|| / ||s B A||``, in float64 throughout.

    With [sB, -s'B'] = Q R and [A; A']^T = P S the norm is that of R S^T: no product of
    full size, and no cancellation of large squares either.

    Raises ValueError where the modules of the two differ.
    """
    squares, norms, tails, worst = 0.0, 0.0, 0.0, 0.0
    for (name, a, b), (name2, a2, b2) in zip(modules(source), modules(other), strict=True):
        if name != name2:
            raise ValueError(f"{other}: {name2} where {source} has {name}")
        spectrum = torch.linalg.svdvals(core(a, scale * b))
        norm = spectrum.square().sum().item()
        gap = (
            core(torch.cat([a, a2]), torch.cat([scale * b, -other_scale * b2], dim=1))
            .square()
            .sum()
            .item()
        )
        squares, norms = squares + gap, norms + norm
        tails += spectrum[len(a2) :].square().sum().item()
        worst = max(worst, math.sqrt(gap / norm))
    return Distance(math.sqrt(squares / norms), worst, math.sqrt(tails / norms))


def core(a: Tensor, b: Tensor) -> Tensor:
    """Return a small matrix with the singular values of ``b @ a``."""
    _, rb = torch.linalg.qr(b, mode="r")
    _, ra = torch.linalg.qr(a.T, mode="r")
    return torch.mm(rb, ra.T)


def modules(weights: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each module's name, A and B, the last two in float64, in the order of the names."""
    with safe_open(weights, framework="pt") as file:
        for key in sorted(file.keys()):
            if ".lora_A." in key:
                b = file.get_tensor(key.replace(".lora_A.", ".lora_B."))
                yield key.partition(".lora_A.")[0], file.get_tensor(key).double(), b.double()


def dtypes(weights: Path) -> set[str]:
    """Return the dtypes that the file stores."""
    with safe_open(weights, framework="pt") as file:
        keys = file.keys()  # a safe_open is no mapping: it cannot be iterated itself
        return {file.get_slice(key).get_dtype() for key in keys}


def scale(config: Path) -> float:
    """Return the scale that PEFT applies by this ``adapter_config.json``.

    Raises ValueError where modules have scales of their own.
    """
    read = json.loads(config.read_text())
    if read.get("rank_pattern") or read.get("alpha_pattern"):
        raise ValueError(f"{config}: rank_pattern and alpha_pattern are not supported here")
    rank = read["r"]
    return float(read["lora_alpha"] / (math.sqrt(rank) if read.get("use_rslora") else rank))
