"""The models of llama.cpp whose adapters are read and written, and what their modules are called.

Its own table says what a weight of transformers is called there; which of the key namings in that
table are those of an architecture is said here, so that names come back as they were.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.gguf import package
from lora_tools.files.typed import shown

SPLIT = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
TABLE, HEAD = "model.embed_tokens", "lm_head"
LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<path>.+)")
BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<path>.+)")
BEFORE = re.compile(r"(?:(?:model\.)?language_model\.)?(?:model\.)?(?=layers\.\d|embed_tokens$)")
"""What may stand before the path of a module in its language model."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model of llama.cpp: the model types of transformers that are one, and their modules."""

    name: str
    models: tuple[str, ...]
    layer: tuple[str, ...] = SPLIT
    paired: bool = False
    """Whether the rows of queries and keys are stored in the interleaved RoPE layout."""
    tied: bool = False
    """Whether the head is the embedding unless a configuration says otherwise."""


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("llama", ("llama", "mistral", "mixtral"), paired=True),
        Architecture("granite", ("granite",), paired=True),
        Architecture("smollm3", ("smollm3",), paired=True),
        Architecture("qwen2", ("qwen2",)),
        Architecture("qwen3", ("qwen3",)),
        Architecture("phi3", ("phi3",), FUSED),
        Architecture("gemma", ("gemma",), tied=True),
        Architecture("gemma2", ("gemma2",), tied=True),
        Architecture("gemma3", ("gemma3", "gemma3_text"), tied=True),
    )
}


def named(name: str) -> Architecture:
    """Return the architecture of a file; `UnsupportedError` if its names are not known here."""
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"an adapter for the architecture {name!r}").hint(
            f"Known are {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return what llama.cpp has a base model's configuration as.

    Raises `FormatError` if it names no model, `UnsupportedError` for those that are not known.
    """
    kind = text_config(config).get("model_type")
    if kind is None:
        raise FormatError("the base model's config.json names no model_type")
    for each in ARCHITECTURES.values():
        if kind in each.models:
            return each
    models = [model for each in ARCHITECTURES.values() for model in each.models]
    raise UnsupportedError(f"a base model of type {shown(kind)}").hint(
        f"Known are {', '.join(models)}."
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that is the language model's."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and "model_type" in text else config


def key_prefix_of(path: str, architecture: Architecture) -> str | None:
    """Return what llama.cpp calls a module, without ``.weight``, or None.

    >>> stem_of("model.layers.3.self_attn.q_proj", ARCHITECTURES["llama"])
    'blk.3.attn_q'
    """
    found = BEFORE.match(path)
    path = "model." + path[found.end() :] if found else path.removeprefix("language_model.")
    layer, whole = _key_prefixes(architecture)
    match = LAYER.fullmatch(path)
    if match is None:
        return whole.get(path)
    key_prefix = layer.get(match["path"])
    return key_prefix and f"blk.{match['layer']}.{key_prefix}"


def path_of(key_prefix: str, architecture: Architecture) -> str | None:
    """Return what transformers calls a module: the inverse of `key_prefix_of`.

    >>> path_of("token_embd", ARCHITECTURES["llama"])
    'model.embed_tokens'
    """
    layer, whole = (
        {key_prefix: path for path, key_prefix in table.items()}
        for table in _key_prefixes(architecture)
    )
    match = BLOCK.fullmatch(key_prefix)
    if match is None:
        return whole.get(key_prefix)
    path = layer.get(match["path"])
    return path and f"model.layers.{match['layer']}.{path}"


@cache
def _key_prefixes(architecture: Architecture) -> tuple[dict[str, str], dict[str, str]]:
    """Return llama.cpp's names of modules, by its own table: within a layer, and outside them."""
    gguf = package()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    table = gguf.TensorNameMap(kind, 1)
    layer = {path: table.get_name(f"model.layers.0.{path}") for path in architecture.layer}
    whole = {path: table.get_name(path) for path in (TABLE, HEAD)}
    return (
        {
            path: key_prefix.removeprefix("blk.0.")
            for path, key_prefix in layer.items()
            if key_prefix
        },
        {path: key_prefix for path, key_prefix in whole.items() if key_prefix},
    )
