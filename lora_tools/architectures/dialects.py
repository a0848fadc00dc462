"""The models that a tool has names of its own for, and what its modules are in transformers."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from lora_tools.architectures.index import Candidate, matches, positions
from lora_tools.architectures.layout import Numbers, Order, Role, RowLayout, fill
from lora_tools.architectures.numbers import language_model, numbers_of
from lora_tools.architectures.rows import Rows
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.typed import shown

WITHIN = re.compile(r"^(?:model\.)?language_model\.")
"""What stands before a language model's paths in a model of several parts."""


class Counterpart(NamedTuple):
    """A module under its other name: a tool's or transformers'."""

    path: str
    role: Role
    order: Order = None
    """How the tool orders its rows, if not as transformers does."""


def candidates(dialect: str, called: str | None = None) -> tuple[Candidate, ...]:
    """Return the families that have a dialect, in it; those that its files call so, if given."""
    from lora_tools.architectures.families import FAMILIES  # which most files do without

    found = (Candidate(each, dialect) for each in FAMILIES if dialect in each.dialects)
    return tuple(each for each in found if called in (None, each.family.ids.get(dialect)))


def candidate_of(base: Mapping[str, Any], tool: str, dialect: str) -> Candidate:
    """Return the family of a base model, in a tool's dialect.

    Raises `FormatError` if the configuration names no model, and `UnsupportedError` if what the
    tool calls its modules is not known.
    """
    kind, known = language_model(base).get("model_type"), candidates(dialect)
    if kind is None:
        raise FormatError("the base model's config.json names no model_type")
    for candidate in known:
        if kind in candidate.family.types:
            return candidate
    called = kind if isinstance(kind, str) else shown(kind)
    types = ", ".join(each for candidate in known for each in candidate.family.types)
    raise UnsupportedError(
        f"the base model is of type {called}, of which it is not known what {tool} calls its"
        " layers and how it orders their rows"
    ).hint(f"Known types: {types}.")


def is_named(module: str, dialect: str) -> bool:
    """Whether a dialect of any family has a module of this path.

    >>> is_named("blk.3.attn_q", "gguf"), is_named("blk.3.attn_q", "litgpt")
    (True, False)
    """
    return any(next(matches(module, each), None) for each in candidates(dialect))


@cache
def modules_of(role: Role, dialect: str) -> frozenset[str]:
    """Return the paths in a dialect of modules outside the layers that have a role.

    >>> modules_of("embedding", "gguf")
    frozenset({'token_embd'})
    """
    return frozenset(
        rule.path
        for family, _ in candidates(dialect)
        for rule in family.rules(dialect)
        if "#" not in rule.path and family.role(rule.layout.parts[0].path) == role
    )


class KnownBase(NamedTuple):
    """A base model as a tool has it: its family there, and its head counts."""

    candidate: Candidate
    numbers: Numbers

    def layout(self, module: str, roles: Collection[Role]) -> RowLayout | None:
        """Return which modules of the hub one of the tool's is made of; None if it has none."""
        family = self.candidate.family
        for match in matches(module, self.candidate):
            parts = match.layout.parts
            if {family.role(part.path) for part in parts} <= {*roles}:
                filled = (part._replace(path=fill(part.path, match.numbers)) for part in parts)
                return replace(match.layout, parts=tuple(filled))
        return None

    def rows(self, module: str, layout: RowLayout, out: int, inp: int) -> tuple[Rows, ...]:
        """Return the rows of each part of a module; `FormatError` if they are not those of it."""
        try:
            return layout.rows(out, inp, self.numbers)
        except FormatError as error:
            raise FormatError(f"{module}: {error}").hint(
                "Check that the base model is the one of this adapter."
            ) from error


def known_base(base: Mapping[str, Any] | None, tool: str, dialect: str) -> KnownBase:
    """Return the family and the head counts of a base model whose layers the tool fuses by heads.

    Raises `UnsupportedError` where the base is missing, or of a family whose names in the files of
    ``tool`` are not known, and `FormatError` where it does not say its heads.
    """
    if not base:
        raise UnsupportedError(
            f"{tool}'s names and fused layers depend on the base model, which the file does not say"
        ).hint("Give it: --base MODEL, with its config.json.")
    return KnownBase(candidate_of(base, tool, dialect), stated_heads(base))


def stated_heads(base: Mapping[str, Any]) -> Numbers:
    """Return the head counts that a base model's configuration says; `FormatError` if none."""
    numbers = numbers_of(base)
    if not numbers:
        raise FormatError("the base model's config.json does not say how many heads it has")
    return numbers


def in_transformers(module: str, among: tuple[Candidate, ...]) -> Counterpart | None:
    """Return what transformers calls a tool's module, where it is one module there, too.

    >>> in_transformers("blk.3.attn_q", candidates("gguf", "qwen2"))
    Counterpart(path='model.layers.3.self_attn.q_proj', role='linear', order=None)
    """
    return next(
        (
            found
            for candidate in among
            if (found := _renamed(module, candidate, _in_transformers(candidate)))
        ),
        None,
    )


def in_tool(path: str, among: tuple[Candidate, ...]) -> Counterpart | None:
    """Return what a tool calls transformers' module: the inverse of `in_transformers`."""
    return next(
        (
            found
            for candidate in among
            if (found := _renamed(path, _in_transformers(candidate), candidate))
        ),
        None,
    )


def whole(path: str) -> tuple[str, str]:
    """Return what a path may be in a language model by itself.

    It may come from a model of which that is a part, or have been saved without its head.

    >>> whole("language_model.layers.3.mlp.up_proj")
    ('layers.3.mlp.up_proj', 'model.layers.3.mlp.up_proj')
    """
    own = WITHIN.sub("", path)
    return own, f"model.{own}"


def _in_transformers(candidate: Candidate) -> Candidate:
    return candidate._replace(dialect=candidate.family.dialect("transformers"))


def _renamed(path: str, here: Candidate, there: Candidate) -> Counterpart | None:
    """Return the module of another dialect that has the same rows, perhaps in another order."""
    for match in matches(path, here):
        parts = match.layout.parts
        fines = [part.path for part in parts]
        for position in positions(fill(fines[0], match.numbers), None, there):
            layout = position.rule.layout
            if [part.path for part in layout.parts] == fines and not layout.stacked:
                order = parts[0].order or layout.parts[0].order
                return Counterpart(position.path, here.family.role(fines[0]), order)
    return None
