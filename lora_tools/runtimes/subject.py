"""Make a subject of what lies on disk: tensors' names, their configuration, what else is there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_tools.adapter import Adapter, read
from lora_tools.errors import CheckpointError, FormatError, LoraToolsError
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location
from lora_tools.files.objects import json_object, read_object
from lora_tools.files.opening import open_checkpoint
from lora_tools.formats.manifest import Manifest
from lora_tools.formats.peft.config import PeftConfig
from lora_tools.runtimes.base import Subject
from lora_tools.runtimes.fields import number
from lora_tools.runtimes.keys import Pair, pairs_of
from lora_tools.scaling import scale

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
PREFERRED = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_model.pt",
    "adapters.safetensors",
)


def subject(source: Adapter | str | Location) -> Subject:
    """Describe an adapter that was read, or whatever lies at a path. Reads alphas, no factor.

    Raises `CheckpointError` for a file that is no checkpoint. A folder's adapter need not be one
    that `read` accepts: what no format can read, runtimes may still load or refuse.
    """
    source = Path(source) if isinstance(source, str) else source
    adapter = source if isinstance(source, Adapter) else _readable(source)
    path = source.path if isinstance(source, Adapter) else source
    tensors = adapter.tensors.stored if adapter else open_checkpoint(_tensor_file(path))
    folder = tensors.path.parent
    config = _config(folder)
    sound = adapter is not None and not adapter.manifest.problems
    manifest = adapter.manifest if adapter and sound else None
    pairs, rest = pairs_of(tensors.specs)
    scalars = tensors.scalars
    return Subject(
        path,
        tensors.path.name,
        tuple(sorted(file.name for file in folder.iterdir())),
        tensors.specs,
        tensors.metadata,
        config,
        manifest,
        pairs,
        rest,
        scalars,
        _truths(pairs, config, manifest, tensors.metadata, scalars),
    )


def adapter_metadata(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Return the configuration that diffusers keeps in a header: component.field → value."""
    try:
        return json_object(metadata.get(METADATA, "null"), METADATA)
    except CheckpointError:
        return None


def _readable(path: Location) -> Adapter | None:
    try:
        return read(path)
    except LoraToolsError:
        return None  # the rules say what a runtime makes of it


def _tensor_file(path: Location) -> Location:
    if path.is_dir():
        for name in PREFERRED:
            if (path / name).is_file():
                return path / name
    return path


def _config(folder: Location) -> Mapping[str, Any] | None:
    if not is_present(folder / CONFIG):
        return None
    try:
        return read_object(folder / CONFIG, FormatError)
    except FormatError:
        return None


def _truths(
    pairs: tuple[Pair, ...],
    config: Mapping[str, Any] | None,
    manifest: Manifest | None,
    metadata: Mapping[str, str],
    scalars: Mapping[str, float],
) -> dict[str, float]:
    """Return the scale of each pair by its own format, where that can be told."""
    if manifest:
        by_key = {m.parts["a"].key: m.scale for m in manifest.modules if "a" in m.parts}
        found = ((pair.key_prefix, by_key.get(pair.down.key)) for pair in pairs if pair.down)
        return {key_prefix: value for key_prefix, value in found if value is not None}
    config = config or {}
    if "peft_type" in config or {"r", "lora_alpha"} <= config.keys():
        return dict(_of_peft(pairs, PeftConfig(config)))
    parameters = config.get("lora_parameters")
    if isinstance(parameters, Mapping):
        factor = number(parameters.get("scale"))
        return {} if factor is None else {pair.key_prefix: factor for pair in pairs}
    return dict(_of_tensors(pairs, adapter_metadata(metadata), scalars))


def _of_peft(pairs: tuple[Pair, ...], peft: PeftConfig) -> Iterator[tuple[str, float]]:
    for pair in pairs:
        try:
            yield (
                pair.key_prefix,
                scale(peft.alpha(pair.path), peft.rank(pair.path), rslora=peft.rslora),
            )
        except (ArithmeticError, ValueError):
            continue  # a rank of 0 or less, or no number at all: no scale


def _of_tensors(
    pairs: tuple[Pair, ...], declared: Mapping[str, Any] | None, scalars: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    components: dict[str, dict[str, Any]] = {}
    for key, value in (declared or {}).items():
        component, _, field = key.partition(".")
        components.setdefault(component, {})[field] = value
    configs = {component: PeftConfig(fields) for component, fields in components.items()}
    for pair in pairs:
        if pair.alpha and pair.rank:
            # kohya reads an alpha of 0 as none.
            yield pair.key_prefix, (scalars[pair.alpha] or pair.rank) / pair.rank
        elif declared:
            config = configs.get(pair.component)
            yield from _of_peft((pair,), config) if config else ()
        else:
            yield pair.key_prefix, 1.0
