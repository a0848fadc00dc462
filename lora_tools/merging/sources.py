"""Where the numbers of a base lie; scaled float8 is multiplied out when it is read."""

from lora_tools.errors import UnsupportedError
from lora_tools.files.place import Place
from lora_tools.merging.entry import Source
from lora_tools.model import Model
from lora_tools.quantised import is_scale, quantisation, scale_of


def sources(base: Model) -> tuple[dict[str, Source], frozenset[str]]:
    """Return where each tensor of a base lies, and the names of those that only scale others."""
    specs, places = base.tensors.specs, base.tensors.arrays.places
    block = quantisation(base.config).get("weight_block_size")
    pair = (int(block[0]), int(block[1])) if isinstance(block, list) and len(block) == 2 else None
    found: dict[str, Source] = {}
    for key, spec in specs.items():
        scale = scale_of(key, specs)
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
    scaled = any(source.scale for source in found.values())
    return found, frozenset(key for key in specs if scaled and is_scale(key, specs))
