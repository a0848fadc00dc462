"""PEFT's names of tensors: which tensors belong together, and what they are called."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from lora_tools.errors import FormatError
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Part, Role
from lora_tools.formats.wrapped import PEFT

PREFIX = PEFT
WRAPPED = ".base_layer"
TOKENS = ".token_adapter.trainable_tokens_delta"
ORIGINAL = ".original_module."
WRAPPER = re.compile(
    r"\.modules_to_save(?:\.(?!weight$|bias$)[^.]+)?(?=\.)|\.original_module(?=\.)"
    r"|\.token_adapter(?=\.)"
)
"""What wrappers of whole modules and of tokens put into a path, the adapter's name with it."""

# The adapter's name ("default") is gone from files that `save_pretrained` wrote and still there
# in a plain dump of the state dict.
LORA_KEY = re.compile(
    r"(?P<key_prefix>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
SUFFIX: dict[tuple[bool, Role], str] = {
    (False, "a"): ".lora_A.weight",
    (False, "b"): ".lora_B.weight",
    (True, "a"): ".lora_embedding_A",
    (True, "b"): ".lora_embedding_B",
    (False, "magnitude"): ".lora_magnitude_vector",
    (True, "magnitude"): ".lora_magnitude_vector",
    (False, "bias"): ".lora_B.bias",
}


class KeyGroup(NamedTuple):
    """The tensors that share a key prefix, and whether they are an embedding's."""

    parts: dict[Role, Part]
    embedding: bool


def collect(specs: Mapping[str, Spec]) -> tuple[dict[str, KeyGroup], list[str]]:
    """Gather the tensors of a file by key prefix; return the keys that are no factors, too."""
    found: dict[str, KeyGroup] = {}
    rest = []
    for key, spec in specs.items():
        match = LORA_KEY.fullmatch(key)
        role = match and _role(match)
        if match is None or role is None:
            rest.append(key)
            continue
        embedding = match["part"].startswith("embedding")
        parts, was_embedding = found.get(match["key_prefix"], KeyGroup({}, embedding=False))
        if role in parts:
            raise FormatError(f"{parts[role].key} and {key} are the same factor").hint(
                "The file holds more than one adapter; save the one that is meant on its own."
            )
        parts[role] = Part(key, spec)
        found[match["key_prefix"]] = KeyGroup(parts, embedding or was_embedding)
    return found, rest


def _role(match: re.Match[str]) -> Role | None:
    part, leaf = match["part"], match["leaf"]
    if part == "magnitude_vector":
        return None if leaf == "bias" else "magnitude"
    if part.startswith("embedding"):
        return None if leaf else ("a" if part.endswith("A") else "b")
    if leaf == "weight":
        return "a" if part == "A" else "b"
    return "bias" if leaf == "bias" and part == "B" else None


def path_of(key_prefix: str) -> str:
    """Return the module path that PEFT matches its patterns against."""
    return key_prefix.removeprefix(PREFIX).replace(WRAPPED, "")


def base_name(key: str) -> str:
    """Return the tensor of the base that a tensor which is no factor stands for.

    >>> base_name("base_model.model.embed.token_adapter.trainable_tokens_delta")
    'embed.weight'
    >>> base_name("base_model.model.lm_head.modules_to_save.weight")
    'lm_head.weight'
    """
    path = path_of(key)
    if TOKENS in path:
        return path[: path.index(TOKENS)] + ".weight"
    return WRAPPER.sub("", path)
