"""What an encoding of weights has to be able to do: find its weights, decode and encode them."""

from collections.abc import Collection, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np

from lora_tools.files.header import Spec
from lora_tools.model import Model
from lora_tools.shapes import Float


class StoredPart(NamedTuple):
    """A stored tensor that a weight is decoded from."""

    key: str
    spec: Spec


class Span(NamedTuple):
    """Some bytes of a part."""

    start: int
    stop: int


class Codec(Protocol):
    """One weight as it is stored. The class finds the weights that it encodes.

    Elements are counted in the order of rows. A range of them is made of whole rows of the last
    dimension, unless the weight has one dimension only.
    """

    title: ClassVar[str]
    """What messages call the encoding."""
    methods: ClassVar[frozenset[str]]
    """The values of ``quant_method`` in a configuration that it is the reader of."""
    loses: ClassVar[str]
    """What encoding loses, in a few words."""

    @property
    def name(self) -> str:
        """What the weight is called, be it stored under that name or not."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        ...

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        """What it is decoded from; the first one is what it was found by."""
        ...

    @property
    def misfit(self) -> str:
        """What is not understood of how its parts fit together; empty if all is."""
        ...

    @classmethod
    def detect(cls, key: str, model: Model) -> Self | None:
        """Return the weight whose first part is this tensor; None if it is none of this encoding.

        From names, types, shapes and the configuration. Decides for itself: no other codec is asked
        before, and a tensor that two of them take is the first one's.
        """
        ...

    @classmethod
    def belongs(cls, key: str, keys: Collection[str]) -> bool:
        """Whether a tensor says something of encoded weights only, and goes when they are decoded.

        Parts of weights do, and scales of activations.
        """
        ...

    def spans(self, start: int, stop: int) -> tuple[Span, ...]:
        """Return the bytes of each part that these elements are decoded from."""
        ...

    def decode(
        self, parts: Sequence[np.ndarray], start: int, stop: int, out: Float[np.ndarray, "n"]
    ) -> None:
        """Fill ``out``, float32 or float64, with elements: exactly, or rounded to it once.

        ``parts`` are the bytes of `spans`.
        """
        ...

    def encode(
        self, numbers: Float[np.ndarray, "n"], parts: Sequence[np.ndarray], start: int, stop: int
    ) -> np.ndarray:
        """Return the bytes of the first part for these elements, the other parts as they are."""
        ...
