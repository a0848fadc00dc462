"""Moving an adapter to other names of its base: keys, owners and what the configuration names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_tools.files.header import Spec
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Extra, Module, Part, Role
from lora_tools.formats.peft.keys import PREFIX, SUFFIX
from lora_tools.formats.sites import Embedding

NAMED = ("modules_to_save", "trainable_token_indices")
"""Fields with names of modules that are stored in full or in rows."""


def moved_module(module: Module, name: str) -> Module:
    """Return a module under another name of the base's."""
    key_prefix = module.key_prefix.removeprefix(PREFIX)
    before = PREFIX if key_prefix != module.key_prefix else ""
    return replace(
        module,
        name=name,
        key_prefix=before + moved(key_prefix, module.name, name),
        owner=moved(module.owner, module.name, name),
    )


def moved_extra(extra: Extra, name: str) -> Extra:
    """Return a tensor that stands for another one of the base's."""
    key = extra.key.removeprefix(PREFIX)
    before = PREFIX if key != extra.key else ""
    return extra._replace(key=before + moved(key, extra.name, name), name=name)


def moved(path: str, old: str, new: str) -> str:
    """Return a path with what begins ``new`` in the place of what begins ``old``.

    >>> moved("visual.blocks.0.base_layer.out", "visual.blocks.0.out", "model.visual.blocks.0.out")
    'model.visual.blocks.0.base_layer.out'
    """
    ours, theirs = old.split("."), new.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ".".join([*theirs, *path.split(".")[len(ours) :]])


def renamed_fields(config: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return a configuration that names these modules by their new paths.

    PEFT compares names with ends of paths: what is an end of the new path, too, stays.
    """

    def named(name: str) -> str:
        new = (there for here, there in paths.items() if f".{here}".endswith(f".{name}"))
        return next((path for path in new if not f".{path}".endswith(f".{name}")), name)

    fields = {key: config[key] for key in NAMED if config.get(key)}
    for key, value in fields.items():
        if isinstance(value, dict):
            fields[key] = {named(name): rows for name, rows in value.items()}
        elif key == NAMED[0] and isinstance(value, list):
            fields[key] = [named(name) for name in value]
    return {**config, **fields}


def prefixed(module: Module, key_prefix: str) -> Module:
    """Return a module under PEFT's keys, with the shapes that PEFT has there."""
    ours = key_prefix.startswith(PREFIX)
    key_prefix = key_prefix if ours else PREFIX + key_prefix
    shapes: dict[Role, tuple[int, ...]] = dict(zip(("b", "a"), factor_shapes(module), strict=True))
    if "magnitude" in module.parts and not ours:
        numel = module.parts["magnitude"].spec.numel
        ones = len(shapes["a"]) - 2
        shapes["magnitude"] = (1, numel, *(1,) * ones) if ones else (numel,)
    embedding = isinstance(module.site, Embedding)
    parts: dict[Role, Part] = {
        role: Part(
            key_prefix + SUFFIX[embedding, role],
            Spec(part.spec.dtype, shapes.get(role, part.spec.shape)),
        )
        for role, part in module.parts.items()
        if role != "alpha"
    }
    return replace(module, parts=parts, key_prefix=key_prefix)
