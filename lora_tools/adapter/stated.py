"""A base's configuration as a job carries it to another process: small, and the same each time."""

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

QUANTISED = ("quantization_config", "compression_config")


def stated(config: Mapping[str, Any] | None) -> bytes | None:
    """Return what formats ask a base's configuration for, packed: its numbers and its names."""
    return None if config is None else _packed(json.dumps(_plain(config), default=str))


def unpacked(config: bytes | None) -> Mapping[str, Any] | None:
    """Return the configuration that `stated` has packed."""
    return None if config is None else dict(json.loads(zlib.decompress(config)))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out tables (labels, quantised layers), which grow; keep those of models within it."""
    sections = {k: _plain(v) for k, v in config.items() if _is_model(k, v)}
    return {k: v for k, v in config.items() if not isinstance(v, Mapping)} | sections


def _is_model(key: str, value: object) -> bool:
    return isinstance(value, Mapping) and key.endswith("_config") and key not in QUANTISED


@lru_cache(maxsize=8)
def _packed(text: str) -> bytes:
    """Return one object for one text, which a job with several adapters pickles once."""
    return zlib.compress(text.encode())
