"""Pairs of factors, found by the names that every tool has for them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Part
from lora_tools.formats.wrapped import PEFT

PREFIX = PEFT
WRAPPED = ".base_layer"

# Spelling, what ends the name of the first factor (in x rank), and of the second (rank x out).
NAMINGS = tuple(
    (naming, re.compile(f"(.+?){down}"), re.compile(f"(.+?){up}"))
    for naming, down, up in (
        ("peft", r"\.lora_A\.weight", r"\.lora_B\.weight"),
        (
            "peft, named",
            r"\.lora_A\.(?!weight$)[^.]+\.weight",
            r"\.lora_B\.(?!weight$)[^.]+\.weight",
        ),
        ("peft embedding", r"\.lora_embedding_A", r"\.lora_embedding_B"),
        ("loralib", r"\.lora_A", r"\.lora_B"),
        ("kohya", r"\.lora_down\.weight", r"\.lora_up\.weight"),
        ("processor", r"_lora\.down\.weight", r"_lora\.up\.weight"),
        ("diffusers", r"\.lora\.down\.weight", r"\.lora\.up\.weight"),
        ("text encoder", r"\.lora_linear_layer\.down\.weight", r"\.lora_linear_layer\.up\.weight"),
        ("mlx", r"\.lora_a", r"\.lora_b"),
        ("torchtune", r"\.lora_a\.weight", r"\.lora_b\.weight"),
    )
)


class Pair(NamedTuple):
    """Two factors of one module, or the one of them that a file has."""

    key_prefix: str
    naming: str
    down: Part | None
    up: Part | None
    alpha: str | None
    """Key of its alpha, a tensor of one element."""

    @property
    def rank(self) -> int | None:
        """The size that both factors share, as the first has it; None if it has no such axis."""
        down, up = (part.spec.shape if part else () for part in (self.down, self.up))
        if self.naming == "mlx":
            if len(down) == 3:  # experts are not transposed
                return down[1]
            return down[-1] if down else up[0] if up else None
        return down[0] if down else up[1] if len(up) > 1 else None

    @property
    def path(self) -> str:
        """The module's path as PEFT matches its patterns against it."""
        return self.key_prefix.removeprefix(PREFIX).replace(WRAPPED, "")

    @property
    def component(self) -> str:
        """The model of a pipeline that its name begins with, if it is one of a pipeline's."""
        return self.key_prefix.partition(".")[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its factors."""
        return tuple(part.key for part in (self.down, self.up) if part)


def pairs_of(specs: Mapping[str, Spec]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pair the factors of a file; return the keys that are neither factors nor alphas, too."""
    found: dict[tuple[str, str], dict[str, Part]] = {}
    rest = []
    for key, spec in specs.items():
        place = _place(key)
        if place is None:
            rest.append(key)
            continue
        key_prefix, naming, side = place
        found.setdefault((key_prefix, naming), {})[side] = Part(key, spec)
    pairs = tuple(
        Pair(key_prefix, naming, parts.get("down"), parts.get("up"), _alpha(key_prefix, specs))
        for (key_prefix, naming), parts in found.items()
    )
    alphas = {pair.alpha for pair in pairs}
    return pairs, tuple(key for key in rest if key not in alphas)


def _place(key: str) -> tuple[str, str, str] | None:
    """Return the key prefix, the naming and the side of a factor's key."""
    for naming, down, up in NAMINGS:
        for side, expression in (("down", down), ("up", up)):
            if match := expression.fullmatch(key):
                return match[1], naming, side
    return None


def _alpha(key_prefix: str, specs: Mapping[str, Spec]) -> str | None:
    key = f"{key_prefix}.alpha"
    return key if key in specs and specs[key].numel == 1 else None
