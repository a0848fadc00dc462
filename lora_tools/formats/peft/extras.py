"""What a PEFT file holds besides factors, and which tensor of the base each of it stands for."""

from collections.abc import Iterable, Mapping

from lora_tools.architectures.conventions import HEADS
from lora_tools.files.header import Spec
from lora_tools.formats.features import COPY
from lora_tools.formats.manifest import MISFIT, Extra
from lora_tools.formats.peft.config import PeftConfig
from lora_tools.formats.peft.keys import ORIGINAL, PREFIX, TOKENS, WRAPPER, base_name, path_of


def extras_of(
    keys: Iterable[str], specs: Mapping[str, Spec], peft: PeftConfig
) -> tuple[Extra, ...]:
    """Describe tensors that are no part of a low-rank update.

    With a resized vocabulary PEFT saves a module under up to three names: as it is, as its wrapper
    has it, and what it was before training. Loaded, it has the first of them; the others are
    copies. So are the tokens of a head that is tied to the embedding, which lists them for both.
    """
    found = [extra_of(key, specs[key], peft) for key in keys]
    kept: dict[str, str] = {}
    for extra in sorted(found, key=lambda extra: WRAPPER.search(extra.key) is not None):
        if extra.rows is None and ORIGINAL not in extra.key:
            kept.setdefault(extra.name, extra.key)
    listed = any(extra.rows for extra in found)
    return tuple(
        extra._replace(kind=COPY)
        if (extra.rows is None and kept.get(extra.name) != extra.key)
        or (extra.rows == () and listed and _is_head(extra.name))
        else extra
        for extra in found
    )


def extra_of(key: str, spec: Spec, peft: PeftConfig) -> Extra:
    """Describe one tensor that is no part of a low-rank update."""
    name = base_name(key)
    kind = _kind(key, peft)
    rows = peft.tokens(name.removesuffix(".weight")) if kind == "trainable tokens" else None
    return Extra(key, spec, kind, name, rows)


def saved(extra: Extra) -> Extra:
    """Return a tensor under the name that PEFT looks for, whatever the file calls it."""
    key = extra.key.removeprefix(PREFIX)
    if extra.kind in (COPY, MISFIT):
        return extra
    if extra.kind == "modules_to_save" and extra.name:
        key = extra.name
    elif extra.kind == "trainable tokens" and TOKENS in key:
        key = key[: key.index(TOKENS)] + TOKENS
    key = PREFIX + key
    return extra if key == extra.key else extra._replace(key=key, stored=extra.stored or extra.key)


def _is_head(name: str) -> bool:
    return name.removesuffix(".weight").endswith(HEADS)


def _kind(key: str, peft: PeftConfig) -> str:
    path = path_of(key)
    if "trainable_tokens" in key:
        return "trainable tokens"
    if peft.saves(path):
        return "modules_to_save"
    if key.endswith(".bias"):
        return "bias"
    return "full weight"
