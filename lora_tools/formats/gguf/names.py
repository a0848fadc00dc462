"""What llama.cpp calls modules, architecture by architecture, and what it has no name for."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from lora_tools.architectures.dialects import (
    Counterpart,
    candidate_of,
    candidates,
    in_tool,
    in_transformers,
    whole,
)
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.numbers import language_model
from lora_tools.errors import UnsupportedError, some
from lora_tools.formats.gguf.header import (
    ARCHITECTURE,
)
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.sites import Embedding, Linear

ROLES = {"a", "b", "alpha"}
"""The parts of a module that a GGUF file says: its alpha, if it is a tensor, in the header."""


DIALECT = "gguf"


ADAPTED = ("linear", "head", "embedding")
"""The roles of modules that it puts a LoRA into."""


@cache
def beginnings() -> tuple[str, ...]:
    """Return how the names of its weights begin."""
    return tuple(
        {
            f"{path.partition('.')[0]}."
            for candidate in candidates(DIALECT)
            for section in candidate.family.sections(DIALECT)
            for path in section.paths
        }
    )


def models_of(name: str) -> tuple[Candidate, ...]:
    """Return the models of an architecture; `UnsupportedError` if its names are not known here."""
    if not (found := candidates(DIALECT, name)):
        known = dict.fromkeys(each.family.ids[DIALECT] for each in candidates(DIALECT))
        raise UnsupportedError(f"an adapter for the architecture {name!r}").hint(
            f"Known are {', '.join(known)}."
        )
    return found


def path_of(key_prefix: str, models: tuple[Candidate, ...], name: str) -> Counterpart:
    """Return what transformers calls a module of the file."""
    found = in_transformers(key_prefix, models)
    if found is None or found.role not in ADAPTED:
        raise UnsupportedError(f"{key_prefix}: no weight of {name} that is known here")
    return found


def place_of(module: Module, models: tuple[Candidate, ...]) -> Counterpart | None:
    """Return what llama.cpp calls a module, without ``.weight``, or None if it has no place."""
    found = next((each for path in whole(module.name) if (each := in_tool(path, models))), None)
    fits = found and found.role in ADAPTED and module.site != Linear(transposed=True)
    site = Embedding if found and found.role == "embedding" else Linear
    return found if fits and isinstance(module.site, site) else None


def architecture_of(manifest: Manifest, *, own: bool) -> tuple[str, tuple[Candidate, ...]]:
    """Return the architecture to write for, and the models that are of it."""
    if own:
        name = manifest.metadata.get(ARCHITECTURE, "")
        return name, models_of(name)
    if not manifest.base:
        raise UnsupportedError(
            "a GGUF adapter is for one architecture and its heads, which only the base model tells"
        ).hint("Give the base model, whose config.json says them: --base MODEL.")
    model = candidate_of(manifest.base, "llama.cpp", DIALECT)
    return model.family.ids[DIALECT], (model,)


def check_places(
    manifest: Manifest, places: Mapping[str, Counterpart], name: str, *, own: bool
) -> None:
    """Raise `UnsupportedError` for what the file has no place for."""
    modules = manifest.modules
    unmatched = [part.key for m in modules for role, part in m.parts.items() if role not in ROLES]
    if not own:
        unmatched += [extra.key for extra in manifest.extras]
    unmatched += [module.name for module in modules if module.name not in places]
    if unmatched:
        names = some(dict.fromkeys(unmatched))
        raise UnsupportedError(f"llama.cpp's {name} has no place for {names}")


def check_head(
    base: Mapping[str, Any], places: Mapping[str, Counterpart], models: tuple[Candidate, ...]
) -> None:
    """Raise `UnsupportedError` for a head that is the embedding."""
    heads = [name for name, place in places.items() if place.role == "head"]
    stated = language_model(base).get("tie_word_embeddings")
    always = any(model.family.tie and model.family.tie.always for model in models)
    if heads and base and (always if stated is None else stated):
        raise UnsupportedError(
            f"{heads[0]}: the base ties its head to its embedding, so llama.cpp has no such weight"
        ).hint("Leave it out of the training, or serve the model with the adapter merged into it.")
