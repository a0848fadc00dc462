"""Quantised checkpoints: scaled float8 multiplies back exactly, the rest is refused by name."""

from lora_tools.errors import UnsupportedError, some
from lora_tools.model import Model
from lora_tools.quantised.configured import declared, quantisation
from lora_tools.quantised.encodings import recognised
from lora_tools.quantised.float8 import (
    FLOAT8,
    READABLE,
    Scaling,
    is_scale,
    scale_of,
    scaling_of,
    spread,
)

__all__ = [
    "FLOAT8",
    "READABLE",
    "Scaling",
    "check",
    "is_scale",
    "quantisation",
    "scale_of",
    "scaling_of",
    "spread",
]


def check(model: Model, remedy: str) -> None:
    """Raise `UnsupportedError`, with the remedy, unless weights are numbers or scaled float8.

    The tensors decide; a configuration may only agree. What is packed, or has a scale that is not
    known, is never taken for plain numbers. Costs names, types and shapes.
    """
    specs = model.tensors.specs
    if found := recognised(specs):
        raise UnsupportedError(
            f"{model.path}: quantised with {found.encoding}: {some(found.tensors)}"
        ).hint(remedy)
    if encoding := declared(model.config, any(spec.dtype in FLOAT8 for spec in specs.values())):
        raise UnsupportedError(
            f"{model.path}: quantised with {encoding}, as its config.json says"
        ).hint(remedy)
    for key in specs:
        scaling_of(key, model)
