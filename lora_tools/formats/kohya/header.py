"""The header of kohya's files: what it says of names and bases, and what stays true of it."""

import json
from collections.abc import Mapping

from lora_tools.errors import CheckpointError, FormatError
from lora_tools.files.objects import json_object
from lora_tools.files.stamp import BLANK
from lora_tools.files.typed import Fields
from lora_tools.formats.kohya.names import flattened, restored
from lora_tools.formats.manifest import Module

BASES = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
"""Fields of the header that name the base model."""


NAMES = "lora_tools.names"
"""Our field of the header: the paths of modules whose dots could not be told otherwise."""


def stated_names(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the paths that our own field gives flattened names."""
    where = f"the header's {NAMES}"
    fields = Fields(where, json_object(metadata.get(NAMES, "{}"), where, FormatError))
    stated = ((key_prefix, fields.text(key_prefix) or "") for key_prefix in fields.values)
    return {
        key_prefix: path
        for key_prefix, path in stated
        if path and key_prefix.endswith(flattened(path))
    }


def header(metadata: Mapping[str, str], modules: tuple[Module, ...]) -> dict[str, str]:
    """Return the header for modules as they are: no other rank, and room for their own hashes."""
    kept = {key: value for key, value in metadata.items() if key != NAMES}
    if any(key.startswith(("ss_", "sshs_")) for key in kept):
        kept |= BLANK
    if "ss_network_dim" in kept or "ss_network_module" in kept:
        ranks = {module.r for module in modules}
        alphas = {module.alpha if module.alpha is not None else module.r for module in modules}
        kept["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
        kept["ss_network_alpha"] = str(alphas.pop()) if len(alphas) == 1 else "Dynamic"
    if "ss_network_args" in kept:
        kept["ss_network_args"] = _arguments(kept["ss_network_args"])
    names, _ = restored([module.key_prefix for module in modules])
    lost = {
        m.key_prefix: m.name
        for m in modules
        if m.name not in (m.key_prefix, names.get(m.key_prefix))
    }
    if lost:
        kept[NAMES] = json.dumps(lost, ensure_ascii=False)
    return kept


def _arguments(text: str) -> str:
    """Return the header's arguments with the algorithm that is written: pairs of factors."""
    try:
        arguments = json_object(text, "ss_network_args")
    except CheckpointError:
        return text  # a note of the training, which nothing depends on
    if arguments.get("algo") in (None, "lora", "locon"):
        return text
    return json.dumps(arguments | {"algo": "locon"})
