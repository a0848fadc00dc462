"""Where in a base model an update belongs, as far as the shapes of its factors depend on it."""

import math
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer; ``transposed`` if its weight is stored as (in, out), as GPT-2's are."""

    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedding, stored as (vocabulary, dimension)."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of any dimension, its kernel folded into the columns of the update.

    With ``groups`` the update is a stack of one matrix per group; each sees all input channels.
    """

    channels: int
    kernel: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Experts:
    """One parameter that stacks the matrices of ``count`` experts."""

    parameter: str
    count: int


Site: TypeAlias = Linear | Embedding | Convolution | Experts


def columns(channels: int, kernel: tuple[int, ...]) -> int:
    """Return the number of columns that a convolution's kernel folds into."""
    return channels * math.prod(kernel)
