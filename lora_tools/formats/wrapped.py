"""Names that wrappers have lengthened: torch.compile, FSDP, DDP and PEFT around a part of a model.

A training script that saves the state dict of a wrapped model saves the wrapper's attribute as a
part of every path below it. No loader has modules of such names; what is meant is the path without.
"""

import re
from collections.abc import Collection, Mapping

from lora_tools.errors import FormatError

TORCH = "_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module"
"""What torch.compile, activation checkpointing and FSDP call the module that they wrap."""
PARTS = re.compile(rf"(?<![^.])(?:{TORCH})\.")
FLAT = re.compile(rf"_(?:{TORCH})_")
"""The same where dots are underscores, as in kohya's names."""

PEFT = "base_model.model."
"""What PEFT calls the model that it wraps."""
WRAPPED = re.compile(rf"(?<![^.]){re.escape(PEFT)}")
PARALLEL = "module."
"""What DDP and DeepSpeed call it."""


def unwrapped(key: str) -> str:
    """Return a tensor's name without the parts of its path that wrappers have put there.

    PEFT's own wrapper stays, once and in front: around a part of a model it stands behind the
    part's name, and around a model that it has wrapped already it stands there twice.

    >>> unwrapped("base_model.model._orig_mod.layers.0._checkpoint_wrapped_module.q.lora_A.weight")
    'base_model.model.layers.0.q.lora_A.weight'
    >>> unwrapped("language_model.base_model.model.model.layers.0.q.lora_A.weight")
    'base_model.model.language_model.model.layers.0.q.lora_A.weight'
    """
    key = FLAT.sub("_", PARTS.sub("", key))
    *outside, path = WRAPPED.split(key)
    if not outside:
        return key
    parts = [part.removeprefix(PARALLEL).removesuffix(".") for part in outside]
    return PEFT + "".join(f"{part}." for part in parts if part) + path.removeprefix(PARALLEL)


def unwrapped_names(keys: Collection[str]) -> Mapping[str, str]:
    """Return the names that differ without wrappers, by the names in the file.

    Raises `FormatError` if two tensors would have one name. Linear in the number of keys.
    """
    names = {key: unwrapped(key) for key in keys}
    if all(key.startswith(PARALLEL) for key in keys):
        names = {key: name.removeprefix(PARALLEL) for key, name in names.items()}
    first: dict[str, str] = {}
    for key, name in names.items():
        if first.setdefault(name, key) != key:
            raise FormatError(f"{first[name]} and {key} are the same tensor, once wrapped").hint(
                "The file holds more than one adapter; save the one that is meant on its own."
            )
    return {key: name for key, name in names.items() if key != name}
