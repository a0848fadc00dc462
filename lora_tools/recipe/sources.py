"""Where the numbers of a base lie; scaled float8 is multiplied out when it is read."""

from lora_tools.errors import UnsupportedError
from lora_tools.model import Model
from lora_tools.quantised import is_scale, scale_of
from lora_tools.recipe.entry import Source
from lora_tools.storage.place import Place
from lora_tools.storage.typed import Fields, is_count


def sources(base: Model) -> tuple[dict[str, Source], frozenset[str]]:
    """Return where each tensor of a base lies, and the names of those that only scale others."""
    specs, places = base.tensors.specs, base.tensors.arrays.places
    pair = _block(base.fields.mapping("quantization_config"))
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


def _block(fields: Fields) -> tuple[int, int] | None:
    """Return the rows and columns of a block of weights that share a scale, if blocks do."""
    field = "weight_block_size"
    block = fields.values.get(field)
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(map(is_count, block)):
        raise fields.refusal(field, "two whole numbers")
    if not all(block):
        raise fields.refusal(field, "the sides of a block")
    return int(block[0]), int(block[1])
