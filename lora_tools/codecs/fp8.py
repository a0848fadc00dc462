"""Float8 weights and what multiplies them: nothing, a number, one for each row or each block."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from lora_tools.codecs.codec import Span, StoredPart
from lora_tools.codecs.declared import block_of
from lora_tools.errors import UnsupportedError
from lora_tools.files.dtypes import FLOATS, torch_dtype
from lora_tools.files.header import Spec
from lora_tools.linalg.rounding import single
from lora_tools.linalg.stored import WIDTH, widen
from lora_tools.model import Model
from lora_tools.shapes import Float

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Types that are numbers of their own, or with a scale beside them."""

SCALE_TYPES = FLOATS | {"F8_E8M0"}
"""Types whose values are factors; a byte would be an exponent."""

MARK = "scaled_fp8"
"""ComfyUI's note in a file that its weights have scales."""


@dataclass(frozen=True, slots=True)
class FP8:
    """A weight of float8, times its scale if it has one."""

    title: ClassVar[str] = "float8"
    methods: ClassVar[frozenset[str]] = frozenset({"fp8", "fbgemm_fp8"})
    loses: ClassVar[str] = "all but 4 significant binary digits (3 of E5M2), and small numbers"

    name: str
    spec: Spec
    scales: tuple[StoredPart, ...] = ()
    """One, if any: of several none is understood."""
    block: tuple[int, int] | None = None
    """The rows and columns that share a number of the scale; None: all do, or those of a row."""
    misfit: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.spec.shape

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        """The weight, and its scale."""
        return (StoredPart(self.name, self.spec), *self.scales)

    @classmethod
    def detect(cls, key: str, model: Model) -> Self | None:
        """Return a weight of float8 with its scale, as shapes and configuration fit them together.

        The size of blocks is nothing that shapes can tell.
        """
        specs = model.tensors.specs
        spec = specs[key]
        if spec.dtype not in FLOAT8:
            return None
        found = tuple(StoredPart(name, specs[name]) for name in _scales(key) if name in specs)
        if not found:
            return cls(key, spec)
        if len(found) > 1 or found[0].spec.dtype not in SCALE_TYPES:
            stated = " and ".join(f"{part.key} ({part.spec.dtype})" for part in found)
            return cls(
                key, spec, found, None, f"{key} is scaled by {stated}, which is not understood"
            )
        try:
            return cls(key, spec, found, *_fit(StoredPart(key, spec), found[0], model))
        except UnsupportedError as error:
            return cls(key, spec, found, None, str(error))

    @classmethod
    def belongs(cls, key: str, keys: Collection[str]) -> bool:
        """Whether a tensor only belongs to the quantisation of another one.

        >>> FP8.belongs("q.weight_scale", {"q.weight"}), FP8.belongs("q.scale", {"q.weight"})
        (True, False)
        """
        owner, _, last = key.rpartition(".")
        if last in ("scale_weight", "scale_input", "input_scale", "comfy_quant"):
            return f"{owner}.weight" in keys
        for end in ("_scale_inv", "_input_scale", "_scale"):
            if key.endswith(end):
                return key.removesuffix(end) in keys
        return key == MARK

    def spans(self, start: int, stop: int) -> tuple[Span, ...]:
        """Return the bytes of these elements, and of the scales of their rows."""
        weight = Span(start, stop)
        if not self.scales:
            return (weight,)
        spec = self.scales[0].spec
        if spec.numel == 1:
            return weight, Span(0, spec.nbytes)
        columns, width = self.shape[1], spec.nbytes // spec.shape[0]
        first, last = start // columns, -(-stop // columns)
        if self.block:
            first, last = first // self.block[0], -(-last // self.block[0])
        return weight, Span(first * width, last * width)

    def decode(
        self, parts: Sequence[np.ndarray], start: int, stop: int, out: Float[np.ndarray, "n"]
    ) -> None:
        """Fill ``out`` with the products: exact in float64, rounded once to float32."""
        _numbers(parts[0], self.spec.dtype, out)
        if not (self.scales and out.size):
            return
        factor = self._factor(parts[1], start, stop)
        table = out.reshape(len(factor), -1)
        table *= factor

    def encode(
        self, numbers: Float[np.ndarray, "n"], parts: Sequence[np.ndarray], start: int, stop: int
    ) -> np.ndarray:
        """Return the nearest codes under the scale as it is; what is too large becomes the largest.

        Ties go to the even code.
        """
        import torch  # numpy has no float8

        wide = np.array(numbers, np.float64)
        if self.scales:
            factor = self._factor(parts[1], start, stop)
            table = wide.reshape(len(factor), -1)
            table /= factor
        kind = torch_dtype(self.spec.dtype)
        most = torch.finfo(kind).max
        # torch goes by way of float32, whose rounding must not make a tie.
        codes = torch.from_numpy(single(np.clip(wide, -most, most))).to(kind)
        result: np.ndarray = codes.view(torch.uint8).numpy()
        return result

    def _factor(self, raw: np.ndarray, start: int, stop: int) -> Float[np.ndarray, "m k"]:
        """Return what rows are multiplied with, in float64; a column where all columns share it."""
        scale = self.scales[0].spec
        count = raw.size * scale.numel // scale.nbytes
        table = np.empty(count)
        _numbers(raw, scale.dtype, table)
        if scale.numel == 1:
            return table.reshape(1, 1)
        if self.block is None:
            return table.reshape(-1, 1)
        columns = self.shape[1]
        rows, grid = np.arange(start // columns, stop // columns), table.reshape(-1, scale.shape[1])
        by_row: Float[np.ndarray, "m k"] = grid[rows // self.block[0] - rows[0] // self.block[0]]
        return by_row[:, np.arange(columns) // self.block[1]]


def _fit(weight: StoredPart, scale: StoredPart, model: Model) -> tuple[tuple[int, int] | None, str]:
    """Return the blocks that share a scale, if it is of blocks; and what does not fit."""
    if scale.spec.numel == 1:
        return None, ""
    shape = weight.spec.shape
    rows = shape[0] if len(shape) == 2 else 0
    block = block_of(model.config)
    if block and rows:
        grid = tuple(-(-size // step) for size, step in zip(shape, block, strict=True))
        if scale.spec.shape == grid:
            return block, ""
    if rows and scale.spec.shape in ((rows,), (rows, 1)):
        return None, ""
    why = f"blocks of {list(block)}" if block else "no weight_block_size in config.json"
    return None, (
        f"{scale.key} of shape {list(scale.spec.shape)} for {weight.key} of shape {list(shape)},"
        f" and {why}: how they fit together is not understood"
    )


def _numbers(raw: np.ndarray, code: str, out: Float[np.ndarray, "n"]) -> None:
    if code in WIDTH:
        widen(raw, code, out)
        return
    import torch  # numpy has no float8

    torch.from_numpy(out).copy_(torch.from_numpy(raw).view(torch_dtype(code)))


def _scales(key: str) -> tuple[str, ...]:
    """Return what the scale of a weight may be called.

    DeepSeek's, by blocks; compressed-tensors', by tensor or row; ComfyUI's, by tensor.
    """
    owner, _, last = key.rpartition(".")
    comfy = (f"{owner}.scale_weight",) if last == "weight" else ()
    return (f"{key}_scale_inv", f"{key}_scale", *comfy)
