"""What a PEFT file holds besides factors, and which tensor of the base each of it stands for."""

from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra
from lora_tools.formats.peft.config import PeftConfig
from lora_tools.formats.peft.keys import base_name, path_of


def extra_of(key: str, spec: Spec, peft: PeftConfig) -> Extra:
    """Describe a tensor that is no part of a low-rank update."""
    name = base_name(key)
    kind = _kind(key, peft)
    rows = peft.tokens(name.removesuffix(".weight")) if kind == "trainable tokens" else None
    return Extra(key, spec, kind, name, rows)


def _kind(key: str, peft: PeftConfig) -> str:
    path = path_of(key)
    if "trainable_tokens" in key:
        return "trainable tokens"
    if peft.saves(path):
        return "modules_to_save"
    if key.endswith(".bias"):
        return "bias"
    return "full weight"
