"""Quantised bases: scaled float8 is multiplied out, anything else is refused by name."""

from collections.abc import Mapping
from typing import Any

from lora_tools.errors import UnsupportedError, some
from lora_tools.model import Model
from lora_tools.recipe.entry import Source
from lora_tools.storage.place import Place

FLOAT8 = ("F8_E4M3", "F8_E5M2")
PACKED = (".qweight", ".qzeros", ".quant_map", ".absmax", ".quant_state", ".weight_packed", ".SCB")
"""What the tensors of GPTQ, AWQ, bitsandbytes and compressed integers are called, in part."""

SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
"""DeepSeek's (by blocks), compressed-tensors' (by tensor or row), ComfyUI's (by tensor)."""


def check_packed(base: Model) -> None:
    """Raise `UnsupportedError` for weights that are packed integers."""
    packed = [key for key in base.tensors.specs if any(mark in key for mark in PACKED)]
    method = str(quantisation(base.config).get("quant_method", ""))
    if packed or method in ("gptq", "awq", "bitsandbytes"):
        named = f"its tensors {some(packed, 2)}" if packed else "config.json"
        raise UnsupportedError(
            f"{base.path}: a quantised base ({method or 'packed integers'}, by {named})"
        ).hint("Merge into the weights it was quantised from, and quantise the result again.")


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration's section about quantisation; empty if it has none."""
    found = config.get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def sources(base: Model) -> tuple[dict[str, Source], frozenset[str]]:
    """Return where each tensor of a base lies, and the names of those that only scale others."""
    specs, places = base.tensors.specs, base.tensors.arrays.places
    block = quantisation(base.config).get("weight_block_size")
    pair = (int(block[0]), int(block[1])) if isinstance(block, list) and len(block) == 2 else None
    found: dict[str, Source] = {}
    scales: set[str] = set()
    for key, spec in specs.items():
        scale = None
        if spec.dtype in FLOAT8:
            stem = key.removesuffix("weight")
            scale = next((name for s in SCALES if (name := stem + s) in specs), None)
        if scale is None:
            found[key] = Source(places[key], spec)
            continue
        place = places[scale]
        if not isinstance(place, Place):
            raise UnsupportedError(f"{base.path}: a pickle of quantised weights")
        rows = spec.shape[0] if spec.shape else 1
        numel = place.slot.spec.numel
        many = numel > 1 and (scale.endswith("_inv") if pair else numel != rows)
        if many and pair is None:
            raise UnsupportedError(
                f"{base.path}: {scale} of shape {list(place.slot.spec.shape)} for {key} of shape"
                f" {list(spec.shape)}: no weight_block_size in config.json says how they fit"
            )
        found[key] = Source(places[key], spec, place, pair if many else None)
        scales.add(scale)
        scales |= {name for name in (f"{stem}input_scale", f"{stem}scale_input") if name in specs}
    return found, frozenset(scales)
