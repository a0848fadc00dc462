"""What a base weight is to the adapter: which kind of layer it belongs to, by name and shape."""

from typing import NamedTuple

from lora_tools.architectures import conventions
from lora_tools.architectures.conventions import (
    CONV1D_LAYERS,
    CONV1D_MODELS,
    EMBEDDINGS,
    TRANSPOSED_EXPERTS,
)
from lora_tools.files.header import Spec
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site
from lora_tools.matching.layers import Layer
from lora_tools.model import Model

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


def place(key: str, spec: Spec, model: Model, layer: Layer | None = None) -> Matrices | None:
    """Return where an update of this weight goes, or None if no LoRA can hold it.

    ``layer``: what a table of its family says that it is; None: its name and shape have to.
    """
    shape = spec.shape
    if len(shape) < 2 or min(shape) < 1:
        return None
    name = key.removesuffix(WEIGHT)
    parent, _, leaf = name.rpartition(".")
    rows, columns = shape[0], spec.numel // shape[0]
    if name == key:
        if len(shape) != 3 or "experts" not in parent.split("."):
            return None
        swapped = layer.transposed if layer else _kind(model) in TRANSPOSED_EXPERTS
        return Matrices(key, Experts(leaf, shape[0]), shape[0], shape[1], shape[2], swapped)
    if len(shape) > 5:
        return None
    if len(shape) > 2:
        return Matrices(name, Convolution(shape[1], shape[2:]), 1, rows, columns, False)
    if leaf in EMBEDDINGS if layer is None else layer.role == "embedding":
        return Matrices(name, Embedding(), 1, rows, columns, True)
    by_name = _kind(model) in CONV1D_MODELS and leaf in CONV1D_LAYERS
    swapped = layer.transposed if layer else by_name
    return Matrices(name, Linear(transposed=swapped), 1, rows, columns, swapped)


def by_token(place: Matrices) -> bool:
    """Whether its rows belong to the tokens of a vocabulary."""
    return isinstance(place.site, Embedding) or place.module.rpartition(".")[2] in HEADS


def _kind(model: Model) -> str:
    return model.fields.text("model_type") or ""
