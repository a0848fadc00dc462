"""Numbers of a base model that shapes do not tell, from its configuration."""

from collections.abc import Mapping
from typing import Any

from lora_tools.architectures.layout import Numbers

HEADS = ("num_attention_heads", "n_head", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")


def numbers_of(config: Mapping[str, Any] | None) -> Numbers:
    """Return the head counts of a configuration, of its language model where it has several.

    Those that it does not say, or not in whole numbers, are missing. Without a count of its own
    for keys and values, each head has its own, or all have one where the configuration says
    ``multi_query``.

    >>> numbers_of({"num_attention_heads": 32, "num_key_value_heads": 8})
    {'heads': 32, 'kv_heads': 8}
    """
    config = config or {}
    text = config.get("text_config")
    stated = text if isinstance(text, Mapping) else config
    heads = _first(stated, HEADS)
    own = _first(stated, KV_HEADS)
    if heads is None or (own is None and any(stated.get(key) for key in KV_HEADS)):
        return {}
    one = stated.get("multi_query") is True and not stated.get("new_decoder_architecture")
    return {"heads": heads, "kv_heads": 1 if one else own or heads}


def language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that is the language model's, if it has such a part."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and "model_type" in text else config


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    counts = (config.get(key) for key in keys)
    return next((count for count in counts if type(count) is int and count > 0), None)
