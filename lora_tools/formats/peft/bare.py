"""PEFT's tensors without their configuration: what they say, and alpha as it is stated."""

from typing import Any

from lora_tools.errors import FormatError, some
from lora_tools.formats.base import Contents
from lora_tools.formats.patterns import number, write_pattern
from lora_tools.formats.peft.keys import WRAPPED, KeyGroup, collect, path_of
from lora_tools.formats.stated import stated_alpha

OWN = "Put the adapter's own adapter_config.json into the same folder."


def stated_config(contents: Contents) -> dict[str, Any]:
    """Return a configuration that fits the tensors, with the alpha that is stated.

    Raises `FormatError` where none is, and for what only a configuration tells: which parameters
    of a module were adapted, and which rows of an embedding.
    """
    try:
        alpha = stated_alpha(contents, None, "no adapter_config.json beside the tensors")
    except FormatError as error:
        raise error.hint(OWN) from None
    found, rest = collect(contents.specs)
    wrapped = [key_prefix for key_prefix in found if key_prefix.endswith(WRAPPED)]
    rows = [key for key in rest if "trainable_tokens" in key]
    if wrapped or rows:
        raise FormatError(
            f"only adapter_config.json says which weights these are of: {some([*wrapped, *rows])}"
        ).hint(OWN)
    ranks = {path_of(key_prefix): _rank(group) for key_prefix, group in found.items()}
    most = max(ranks.values(), default=0)
    parts = {role for group in found.values() for role in group.parts}
    return {
        "peft_type": "LORA",
        "r": most,
        "lora_alpha": number(alpha),
        "rank_pattern": write_pattern(ranks, most),
        "target_modules": list(ranks),
        "use_dora": "magnitude" in parts,
        "lora_bias": "bias" in parts,
    }


def _rank(group: KeyGroup) -> int:
    """Return the size that a pair of factors shares."""
    shape = group.parts["a"].spec.shape if "a" in group.parts else ()
    return shape[0] if shape else 0
