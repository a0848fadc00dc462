"""Weights that are stored as they are: any type of safetensors, of which floats are numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from lora_tools.codecs.codec import Span, StoredPart
from lora_tools.files.dtypes import DTYPES
from lora_tools.files.header import Spec
from lora_tools.linalg import half
from lora_tools.linalg.rounding import round_into
from lora_tools.linalg.stored import WIDTH, widen
from lora_tools.model import Model
from lora_tools.shapes import Float


@dataclass(frozen=True, slots=True)
class Plain:
    """A weight that is one tensor, whose elements are its own."""

    title: ClassVar[str] = "plain numbers"
    methods: ClassVar[frozenset[str]] = frozenset()
    loses: ClassVar[str] = "what the type cannot hold, rounded to nearest"

    name: str
    spec: Spec

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.spec.shape

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        """The tensor itself."""
        return (StoredPart(self.name, self.spec),)

    @property
    def misfit(self) -> str:
        """Nothing: there is nothing that could not fit."""
        return ""

    @classmethod
    def detect(cls, key: str, model: Model) -> Self | None:
        """Return any tensor as it is."""
        return cls(key, model.tensors.specs[key])

    @classmethod
    def belongs(cls, key: str, keys: Collection[str]) -> bool:
        """No tensor says anything of plain numbers."""
        return False

    def spans(self, start: int, stop: int) -> tuple[Span, ...]:
        """Return the bytes of these elements."""
        bits = DTYPES[self.spec.dtype].bits
        return (Span(start * bits // 8, stop * bits // 8),)

    def decode(
        self, parts: Sequence[np.ndarray], start: int, stop: int, out: Float[np.ndarray, "n"]
    ) -> None:
        """Fill ``out`` with the numbers, exactly; float64 ones want it to be float64."""
        if self.spec.dtype == "F16":
            np.copyto(out, half.widen(parts[0].view(np.float16)))
        else:
            widen(parts[0], self.spec.dtype, out)

    def encode(
        self, numbers: Float[np.ndarray, "n"], parts: Sequence[np.ndarray], start: int, stop: int
    ) -> np.ndarray:
        """Return the bytes of the numbers, rounded to nearest."""
        out = np.empty((stop - start) * WIDTH[self.spec.dtype], np.uint8)
        round_into(numbers, self.spec.dtype, out, np.empty_like(numbers))
        return out
