"""Float8 weights and what multiplies them: one number, one for each row, or one for each block."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from lora_tools.errors import UnsupportedError
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.model import Model
from lora_tools.quantised.configured import block_of
from lora_tools.shapes import Float

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Types that are numbers of their own, or with a scale beside them."""

READABLE = FLOATS | FLOAT8

SCALE_TYPES = FLOATS | {"F8_E8M0"}
"""Types whose values are factors; a byte would be an exponent."""

MARK = "scaled_fp8"
"""ComfyUI's note in a file that its weights have scales."""


class Scaling(NamedTuple):
    """What a float8 weight is multiplied by."""

    key: str
    """The tensor that holds it."""
    block: tuple[int, int] | None
    """The rows and columns that share an element; None: all do, or each row has its own."""


def scaling_of(key: str, model: Model) -> Scaling | None:
    """Return what a float8 weight is to be multiplied by, if there is anything.

    Raises `UnsupportedError` where shapes and configuration do not say how the two fit together:
    the size of blocks is nothing that shapes can tell.
    """
    specs = model.tensors.specs
    if specs[key].dtype not in FLOAT8:
        return None
    found = [name for name in _scales(key) if name in specs]
    if not found:
        return None
    name, spec, scale = found[0], specs[key], specs[found[0]]
    if len(found) > 1 or scale.dtype not in SCALE_TYPES:
        said = " and ".join(f"{each} ({specs[each].dtype})" for each in found)
        raise UnsupportedError(f"{model.path}: {key} is scaled by {said}, which is not understood")
    if scale.numel == 1:
        return Scaling(name, None)
    rows = spec.shape[0] if len(spec.shape) == 2 else 0
    block = block_of(model.config)
    if block and rows:
        grid = tuple(-(-size // step) for size, step in zip(spec.shape, block, strict=True))
        if scale.shape == grid:
            return Scaling(name, block)
    if rows and scale.shape in ((rows,), (rows, 1)):
        return Scaling(name, None)
    why = f"blocks of {list(block)}" if block else "no weight_block_size in config.json"
    raise UnsupportedError(
        f"{model.path}: {name} of shape {list(scale.shape)} for {key} of shape {list(spec.shape)},"
        f" and {why}: how they fit together is not understood"
    )


def spread(
    table: Float[np.ndarray, "..."],
    block: tuple[int, int] | None,
    rows: tuple[int, int],
    columns: int,
) -> Float[np.ndarray, "m k"]:
    """Return the factors of some rows of a weight, a column of them where all columns share it."""
    start, stop = rows
    if block is None:
        column = table.reshape(-1, 1)
        return column[start:stop] if len(column) > 1 else np.repeat(column, stop - start, 0)
    tall = table[np.arange(start, stop) // block[0]]
    return tall[:, np.arange(columns) // block[1]]


def scale_of(key: str, specs: Mapping[str, Spec]) -> str | None:
    """Return the tensor that a float8 weight is to be multiplied by, if there is one."""
    if specs[key].dtype not in FLOAT8:
        return None
    return next((name for name in _scales(key) if name in specs), None)


def is_scale(key: str, specs: Collection[str]) -> bool:
    """Whether a tensor only belongs to the quantisation of another one.

    >>> is_scale("q.weight_scale", {"q.weight"}), is_scale("q.input_scale", {"q.weight"})
    (True, True)
    """
    stem, _, last = key.rpartition(".")
    if last in ("scale_weight", "scale_input", "input_scale", "comfy_quant"):
        return f"{stem}.weight" in specs
    for end in ("_scale_inv", "_input_scale", "_scale"):
        if key.endswith(end):
            return key.removesuffix(end) in specs
    return key == MARK


def _scales(key: str) -> tuple[str, ...]:
    """Return what the scale of a weight may be called.

    DeepSeek's, by blocks; compressed-tensors', by tensor or row; ComfyUI's, by tensor.
    """
    stem, _, last = key.rpartition(".")
    comfy = (f"{stem}.scale_weight",) if last == "weight" else ()
    return (f"{key}_scale_inv", f"{key}_scale", *comfy)
