"""What a configuration says about quantisation: the method, and the size of blocks."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lora_tools.errors import UnsupportedError

METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "metal": "MLX's kernels",
    "mxfp4": "MXFP4",
    "quanto": "quanto",
    "quark": "Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""Values of ``quant_method`` whose weights are not read, and the methods' names."""

MIXED = ("compressed-tensors", "modelopt")
"""Methods of several encodings, which may leave weights alone: the tensors decide."""

SECTIONS = ("quantization_config", "compression_config")


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration's section about quantisation; empty if it has none."""
    return next((section for section in _sections(config) if isinstance(section, Mapping)), {})


def declared(
    config: Mapping[str, Any], read: Mapping[str, str], present: Collection[str]
) -> str | None:
    """Return the encoding that a configuration declares, if weights in it are not read.

    ``read`` are the methods that are, with the encoding of each; ``present`` are the encodings that
    weights were found in.
    """
    for section in _sections(config):
        if not isinstance(section, Mapping):
            return "an unknown method"
        method = section.get("quant_method")
        if method in MIXED:
            continue
        if isinstance(method, str) and method in read:
            if read[method] not in present:
                return f"{method} and without any tensor of {read[method]}"
        elif isinstance(method, str):
            return METHODS.get(method, f"the unknown method {method!r}")
        elif "bits" in section:
            return "MLX"
        elif section.get("load_in_4bit") or section.get("load_in_8bit"):
            return "bitsandbytes"
        else:
            return "an unknown method"
    return None


def block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale, if a configuration says so.

    Raises `UnsupportedError` if it says something else, or several things.
    """
    section = quantisation(config)
    stated = [section.get("weight_block_size")]
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        stated.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
    sizes = [size for size in stated if size is not None]
    if not sizes:
        return None
    first = sizes[0]
    sound = isinstance(first, list) and len(first) == 2 and all(_is_size(item) for item in first)
    if not sound or any(size != first for size in sizes):
        raise UnsupportedError(f"config.json: blocks of {' and '.join(map(str, sizes))}")
    return first[0], first[1]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _sections(config: Mapping[str, Any]) -> Iterator[Any]:
    text = config.get("text_config")
    for each in (config, text if isinstance(text, Mapping) else {}):
        yield from (each[name] for name in SECTIONS if each.get(name))
        own = each.get("quantization")  # MLX's, which others use for other things
        if isinstance(own, Mapping) and "bits" in own:
            yield own
