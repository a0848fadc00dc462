"""Quantised checkpoints: scaled float8 multiplies back exactly, the rest is refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from lora_tools.errors import UnsupportedError, some
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.model import Model

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Types that are numbers of their own, or with a scale beside them."""

READABLE = FLOATS | FLOAT8

SIGNS: Mapping[str, tuple[str, ...]] = {
    "GPTQ": (".g_idx",),
    "AWQ": (".qzeros",),
    "bitsandbytes": (
        ".weight.absmax",
        ".weight.nested_absmax",
        ".weight.quant_map",
        ".SCB",
        ".weight.quant_state.bitsandbytes__nf4",
        ".weight.quant_state.bitsandbytes__fp4",
    ),
    "MXFP4": ("_blocks",),
    "compressed-tensors": (".weight_packed",),
    "GPTQ or AWQ": (".qweight",),
}
"""How names end that only a quantised checkpoint has."""

METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "compressed-tensors": "compressed-tensors",
    "hqq": "HQQ",
    "quanto": "quanto",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "higgs": "HIGGS",
}
"""The ``quant_method`` of a configuration, and its name."""

MIXED = ("compressed-tensors",)
"""Methods that may store float8, which is readable: their tensors decide."""

MARK = "scaled_fp8"
"""ComfyUI's note in a file that its weights have scales."""


def check(model: Model, remedy: str) -> None:
    """Raise `UnsupportedError`, with the remedy, if weights are packed in another form."""
    method = str(quantisation(model.config).get("quant_method", ""))
    specs = model.tensors.specs
    for name, ends in SIGNS.items():
        found = [key for key in specs if key.endswith(ends)]
        if name == "MXFP4":
            found = [key for key in found if key.replace("_blocks", "_scales") in specs]
        if found:
            which = f": {some(found)}"
            raise _refusal(model, METHODS.get(method, name), which).hint(remedy)
    if method in METHODS and method not in MIXED:
        raise _refusal(model, METHODS[method], ", as its config.json says").hint(remedy)


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration's section about quantisation; empty if it has none."""
    found = config.get("quantization_config")
    return found if isinstance(found, Mapping) else {}


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
    if last in ("scale_weight", "scale_input", "input_scale"):
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


def _refusal(model: Model, method: str, which: str) -> UnsupportedError:
    return UnsupportedError(f"{model.path}: quantised with {method}{which}")
