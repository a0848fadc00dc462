"""What formats that are only read have in common: pairs by key prefix, each checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_tools.architectures.dialects import is_named
from lora_tools.errors import FormatError
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.formats.fused import FusedPart
from lora_tools.formats.manifest import Module, Part, Role
from lora_tools.formats.sites import Linear

if TYPE_CHECKING:
    from lora_tools.update import Array, LowRank


LITGPT = re.compile(r"(?P<path>transformer\.h\.\d+\.(?P<layer>[^\d].*))\.lora_[AB]")
ELSEWHERE = ("attn.attn", "mlp.fc")
"""What LitGPT calls layers of models that are in no table."""


def is_litgpt(key: str) -> bool:
    """Whether a name is LitGPT's, and not loralib's, of which LitGPT began as a copy."""
    match = LITGPT.fullmatch(key)
    if match is None:
        return False
    return match["layer"] in ELSEWHERE or is_named(match["path"], "litgpt")


@dataclass(frozen=True, slots=True)
class FactorPair:
    """The two tensors under a key prefix: A, (rows, in), and B, (out, rank)."""

    a: Part
    b: Part

    @property
    def parts(self) -> dict[Role, Part]:
        """The tensors by role."""
        return {"a": self.a, "b": self.b}

    @property
    def rank(self) -> int:
        """The rank of each of its products."""
        return self.b.spec.shape[1]

    @property
    def products(self) -> int:
        """How many products it holds: blocks of A's rows, as many as the rank each."""
        return self.a.spec.shape[0] // self.rank

    @property
    def out(self) -> int:
        """Rows of B."""
        return self.b.spec.shape[0]

    @property
    def inp(self) -> int:
        """Columns of A."""
        return self.a.spec.shape[1]


def pairs(specs: Mapping[str, Spec], a: str, b: str) -> tuple[dict[str, FactorPair], list[str]]:
    """Return pairs by what stands before these endings, and the keys that have neither.

    Raises `FormatError` for tensors without a partner, and for shapes that make no product.
    """
    key_prefixes = dict.fromkeys(
        key.removesuffix(end) for key in specs for end in (a, b) if key.endswith(end)
    )
    found = {}
    for key_prefix in key_prefixes:
        if missing := [key_prefix + end for end in (a, b) if key_prefix + end not in specs]:
            raise FormatError(f"there is no {missing[0]}")
        pair = FactorPair(
            Part(key_prefix + a, specs[key_prefix + a]), Part(key_prefix + b, specs[key_prefix + b])
        )
        _check(key_prefix, pair)
        found[key_prefix] = pair
    return found, [key for key in specs if not key.endswith((a, b))]


def _check(key_prefix: str, pair: FactorPair) -> None:
    for part in (pair.a, pair.b):
        if part.spec.dtype not in FLOATS:
            raise FormatError(f"{part.key} has elements of type {part.spec.dtype}")
    a, b = pair.a.spec.shape, pair.b.spec.shape
    if len(a) != 2 or len(b) != 2 or min(*a, *b) < 1 or a[0] % b[1]:
        raise FormatError(f"{key_prefix}: A {list(a)} and B {list(b)} are no pair of factors")


def linear(
    path: str, key_prefix: str, pair: FactorPair, alpha: float, share: FusedPart | None = None
) -> Module:
    """Describe the linear layer that a pair, or a share of it, is the update of."""
    out = share.out if share else pair.out
    rank, inp = pair.rank, pair.inp
    return Module(
        path, Linear(), out, inp, rank, alpha, False, pair.parts, key_prefix, path, fused=share
    )


def low_rank(module: Module, tensors: Mapping[str, "Array"]) -> "LowRank":
    """Make a module's update from its pair, or from its part of a pair."""
    from lora_tools.update import LowRank  # numpy is not needed for headers

    b, a = (tensors[module.parts[role].key] for role in ("b", "a"))
    if module.fused is not None:
        b, a = module.fused.factors(b, a)
    return LowRank(a, b, module.alpha, module.rslora)
