"""Where the numbers of a base lie; scaled float8 is multiplied out when it is read."""

from lora_tools.errors import UnsupportedError
from lora_tools.files.place import Place
from lora_tools.merging.entry import Source
from lora_tools.model import Model
from lora_tools.quantised import is_scale, scaling_of


def sources(base: Model) -> tuple[dict[str, Source], frozenset[str]]:
    """Return where each tensor of a base lies, and the names of those that only scale others."""
    specs, places = base.tensors.specs, base.tensors.arrays.places
    found: dict[str, Source] = {}
    for key, spec in specs.items():
        scaling = scaling_of(key, base)
        if scaling is None:
            found[key] = Source(places[key], spec)
            continue
        place = places[scaling.key]
        if not isinstance(place, Place):
            raise UnsupportedError(f"{base.path}: a pickle of quantised weights")
        found[key] = Source(places[key], spec, place, scaling.block)
    scaled = any(source.scale for source in found.values())
    return found, frozenset(key for key in specs if scaled and is_scale(key, specs))
