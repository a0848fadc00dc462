"""Sites: where in a base each module of an adapter belongs, whatever stands before its name."""

from collections.abc import Iterable, Mapping
from typing import Any

from lora_tools.adapter import Adapter
from lora_tools.errors import FormatError, some
from lora_tools.files.typed import Fields
from lora_tools.merging.pieces import Site, Specs, find, names
from lora_tools.names import Prefix, align


def prefix_of(adapter: Adapter, specs: Specs) -> Prefix:
    """Return what to change at the beginning of an adapter's names to have those of a base.

    Raises `FormatError` if the adapter fits in several places equally well.
    """
    manifest = adapter.manifest
    wanted = [[*names(module)] for module in manifest.modules]
    wanted += [[extra.name or extra.key] for extra in manifest.extras]
    if all(any(name in specs for name in each) for each in wanted):
        return Prefix()
    # A few names that fit are no place for an adapter.
    prefixes = [
        prefix
        for prefix in align([name for each in wanted for name in each], specs.keys())
        if sum(_among(each, prefix, specs) for each in wanted) * 2 >= len(wanted)
    ]
    if len(prefixes) > 1:
        places = some(prefix.add or "the top" for prefix in prefixes)
        raise FormatError(f"{adapter.path}: fits the base in several places: {places}")
    return prefixes[0] if prefixes else Prefix()


def sites(
    adapter: Adapter, prefix: Prefix, specs: Specs, config: Mapping[str, Any]
) -> dict[str, Site | None]:
    """Return the site of each module in a base of these tensors; None if there is no such weight.

    ``config`` is the base's. Raises `FormatError` where neither shapes nor versions tell which side
    of a weight is its input.
    """
    manifest = adapter.manifest
    known = {"peft_version": manifest.config.get("peft_version"), "model_type": _kind(config)}
    return {module.name: find(module, prefix, specs, known) for module in manifest.modules}


def _among(names: Iterable[str], prefix: Prefix, specs: Specs) -> bool:
    return any(
        prefix(name) in specs and (not prefix.drop or "." in name.removeprefix(prefix.drop))
        for name in names
    )


def _kind(config: Mapping[str, Any]) -> str | None:
    fields = Fields("config.json", config)
    return fields.mapping("text_config").text("model_type") or fields.text("model_type")
