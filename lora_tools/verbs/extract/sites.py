"""What a base weight is to the adapter: which kind of layer it belongs to, by name and shape."""

from typing import NamedTuple, TypeAlias

from lora_tools.architectures import conventions
from lora_tools.architectures.conventions import (
    CONV1D_LAYERS,
    CONV1D_MODELS,
    EMBEDDINGS,
    MAMBA_LAYERS,
    MAMBAS,
    PACKED_PARAMETER,
    PEFT_TRANSPOSED,
    STACKED_LAYERS,
)
from lora_tools.files.header import Spec
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site
from lora_tools.matching.layers import Layer

WEIGHT = ".weight"

HEADS = frozenset(name for name in conventions.HEADS if "." not in name)
"""Output layers whose rows belong to tokens."""


class Matrices(NamedTuple):
    """A weight as matrices: ``stack`` of them, each ``rows`` x ``columns`` as they are stored."""

    module: str
    site: Site
    stack: int
    rows: int
    columns: int
    transposed: bool
    """Whether the stored matrix is the update's transpose, (in, out)."""

    @property
    def out(self) -> int:
        """Rows of the update."""
        return self.columns if self.transposed else self.rows

    @property
    def inp(self) -> int:
        """Columns of the update."""
        return self.rows if self.transposed else self.columns


Place: TypeAlias = Matrices | str
"""Where an update goes, or why no adapter can hold it; "" where it is too small to be one."""


def place(key: str, spec: Spec, kind: str, layer: Layer | None = None) -> Place:
    """Return where an update of this weight goes, or why no adapter that PEFT loads can hold it.

    ``kind``: the base's ``model_type``; ``layer``: what a table of its family says that it is, or
    None, where its name and shape have to.
    """
    shape = spec.shape
    if len(shape) < 2 or min(shape) < 1:
        return ""
    name = key.removesuffix(WEIGHT)
    parent, _, leaf = name.rpartition(".")
    rows, columns = shape[0], spec.numel // shape[0]
    stacked = leaf in STACKED_LAYERS or (name == key and "experts" in parent.split("."))
    if stacked and len(shape) == 3:
        site = Experts(key.rpartition(".")[2], shape[0])
        return Matrices(key, site, shape[0], shape[1], shape[2], kind in PEFT_TRANSPOSED)
    if key.endswith(PACKED_PARAMETER) and layer and len(shape) == 2:
        return Matrices(parent, Linear(), 1, rows, columns, False)
    if name == key:
        return "a parameter of no layer that PEFT wraps"
    if kind in MAMBAS and leaf in MAMBA_LAYERS:
        return "a layer of Mamba that PEFT refuses to wrap"
    if len(shape) > 2 and shape[1] == 1 < shape[0]:
        return "a convolution of one input channel, as depthwise ones are"
    if len(shape) > 5:
        return ""
    if len(shape) > 2:
        return Matrices(name, Convolution(shape[1], shape[2:]), 1, rows, columns, False)
    if leaf in EMBEDDINGS if layer is None else layer.role == "embedding":
        return Matrices(name, Embedding(), 1, rows, columns, True)
    by_name = kind in CONV1D_MODELS and leaf in CONV1D_LAYERS
    swapped = by_name or (layer is not None and layer.transposed)
    return Matrices(name, Linear(transposed=swapped), 1, rows, columns, swapped)


def by_token(place: Matrices) -> bool:
    """Whether its rows belong to the tokens of a vocabulary."""
    return isinstance(place.site, Embedding) or place.module.rpartition(".")[2] in HEADS
