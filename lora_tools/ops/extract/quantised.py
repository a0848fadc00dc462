"""Quantised checkpoints: refused by name, but for scaled float8, which multiplies back exactly."""

from collections.abc import Mapping

from lora_tools.errors import UnsupportedError, some
from lora_tools.model import Model
from lora_tools.storage.dtypes import FLOATS

EIGHT = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Types that are numbers of their own, or with a scale beside them."""
SCALES = ("_scale", "_scale_inv")
"""What stands after a weight's name where its scale is stored; both multiply."""
READABLE = FLOATS | EIGHT

SIGNS: Mapping[str, tuple[str, ...]] = {
    "GPTQ": (".g_idx",),
    "AWQ": (".qzeros",),
    "bitsandbytes": (".weight.absmax", ".weight.quant_map", ".SCB", ".weight.nested_absmax"),
    "MXFP4": ("_blocks",),
    "compressed-tensors": (".weight_packed",),
    "GPTQ or AWQ": (".qweight",),
}
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


def check(model: Model) -> None:
    """Raise `UnsupportedError` if the weights are stored in another form than numbers."""
    config = model.config.get("quantization_config")
    method = str(config.get("quant_method", "")) if isinstance(config, Mapping) else ""
    keys = list(model.tensors)
    for name, suffixes in SIGNS.items():
        found = [key for key in keys if key.endswith(suffixes)]
        if name == "MXFP4":
            found = [key for key in found if key.replace("_blocks", "_scales") in model.tensors]
        if found:
            raise _refusal(model, METHODS.get(method, name), found)
    if method in METHODS and method != "compressed-tensors":
        raise _refusal(model, METHODS[method], [])


def scale_of(key: str, model: Model) -> str | None:
    """Return the tensor that a float8 weight is to be multiplied by, if there is one."""
    if model.tensors.specs[key].dtype not in EIGHT:
        return None
    return next((key + end for end in SCALES if key + end in model.tensors), None)


def is_scale(key: str, model: Model) -> bool:
    """Whether a tensor is the scale of another one."""
    return any(
        key.endswith(end) and key.removesuffix(end) in model.tensors
        for end in (*SCALES, "_input_scale")
    ) or key.endswith(".input_scale")


def _refusal(model: Model, method: str, found: list[str]) -> UnsupportedError:
    which = f": {some(found)}" if found else ", as its config.json says"
    return UnsupportedError(f"{model.path}: quantised with {method}{which}").hint(
        "A difference of quantised weights is mostly quantisation. Give the checkpoint that was"
        " quantised, in bfloat16, float16 or float32."
    )
