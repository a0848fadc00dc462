"""Base models whose layers another tool names otherwise, by the tables of their families."""

from collections.abc import Mapping
from typing import Any

from lora_tools.architectures.index import Candidate
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.typed import shown
from lora_tools.formats.rotary import Heads, heads_of


def candidates(dialect: str) -> tuple[Candidate, ...]:
    """Return the families that have a dialect, in it."""
    from lora_tools.architectures.families import FAMILIES  # which most files do without

    return tuple(Candidate(each, dialect) for each in FAMILIES if dialect in each.dialects)


def candidate_of(base: Mapping[str, Any], tool: str, dialect: str) -> Candidate:
    """Return the family of a base model; `UnsupportedError` if the tool's names are not known."""
    kind, known = base.get("model_type"), candidates(dialect)
    for candidate in known:
        if kind in candidate.family.types:
            return candidate
    called = kind if isinstance(kind, str) else shown(kind)
    types = ", ".join(each for candidate in known for each in candidate.family.types)
    raise UnsupportedError(
        f"the base model is of type {called}, of which it is not known what {tool} calls its"
        " layers and how it orders their rows"
    ).hint(f"Known types: {types}.")


def heads_by(base: Mapping[str, Any] | None, tool: str, dialect: str) -> Heads:
    """Return the head counts of a base model whose layers the tool fuses by heads.

    Raises `UnsupportedError` where the base is missing, or of a family whose names in the files of
    ``tool`` are not known, and `FormatError` where it does not say its heads.
    """
    if not base:
        raise UnsupportedError(
            f"{tool}'s names and fused layers depend on the base model, which the file does not say"
        ).hint("Give it: --base MODEL, with its config.json.")
    candidate_of(base, tool, dialect)
    return stated_heads(base)


def stated_heads(base: Mapping[str, Any]) -> Heads:
    """Return the head counts that a base model's configuration says; `FormatError` if none."""
    heads = heads_of(base)
    if heads is None:
        raise FormatError("the base model's config.json does not say how many heads it has")
    return heads
