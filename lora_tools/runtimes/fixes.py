"""The commands that fix a broken rule, or None where no command of ours does."""

import shlex

from lora_tools.runtimes.base import Check, Fix, Subject
from lora_tools.runtimes.limits import RANKS, REFUSES


def refolded(subject: Subject) -> str | None:
    """Write the adapter anew at its own rank: the scale in the factors, names and targets plain.

    The error is that of rounding; an adapter that no format of ours reads cannot be written.
    """
    rank = _rank(subject)
    return _shrink(subject, rank) if rank else None


def uniform(subject: Subject) -> str | None:
    """Write the adapter at one rank, the largest that it has, filled up with zeros."""
    rank = _rank(subject)
    if not rank or rank > max(RANKS) or _kinds(subject) & REFUSES:
        return None
    return _shrink(subject, rank) + " --for vllm"


def even(subject: Subject) -> str | None:
    """Write the adapter so that one scale is right for all of it, at one rank if it has several."""
    ranks = {pair.rank for pair in subject.pairs}
    return refolded(subject) if len(ranks) == 1 else uniform(subject)


def lowered(subject: Subject, rank: int) -> str | None:
    """Write the adapter at one rank, ``rank``, with the least error that it allows."""
    if not _rank(subject) or _kinds(subject) & REFUSES:
        return None
    return _shrink(subject, rank) + " --for vllm"


def plainly_named(check: Check) -> Fix:
    """Fix names that keep the adapter's own in them; other offenders cannot be fixed at all."""

    def fix(subject: Subject) -> str | None:
        named = {key for p in subject.pairs if p.naming == "peft, named" for key in p.keys}
        found = check(subject)
        return uniform(subject) if found and set(found.where) <= named else None

    return fix


def _shrink(subject: Subject, rank: int) -> str:
    return f"lora-tools shrink {shlex.quote(str(subject.path))} OUT --rank {rank}"


def _rank(subject: Subject) -> int | None:
    modules = subject.manifest.modules if subject.manifest else ()
    return max((module.r for module in modules), default=None)


def _kinds(subject: Subject) -> set[str]:
    if subject.manifest is None:
        return set()
    kinds = {extra.kind for extra in subject.manifest.extras}
    roles = {role for module in subject.manifest.modules for role in module.parts}
    names = {"magnitude": "DoRA magnitude", "bias": "bias"}
    return kinds | {names[role] for role in roles & names.keys()}
