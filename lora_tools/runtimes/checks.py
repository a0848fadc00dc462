"""Checks that several runtimes make, of files, names and patterns."""

from collections.abc import Callable, Iterable, Sequence

from lora_tools.errors import FormatError, some
from lora_tools.runtimes.base import Breach, Check, Subject


def breach(where: Sequence[str], why: str) -> Breach | None:
    """Return how these offenders break a rule, or None if there are none."""
    return Breach(why, where) if where else None


def has_file(*names: str) -> Check:
    """Demand one of these files in the adapter's folder."""

    def check(subject: Subject) -> Breach | None:
        if set(names) & set(subject.files):
            return None
        return Breach(f"the folder has no {' or '.join(names)}, only {some(subject.files, 3)}")

    return check


def has_pairs(subject: Subject) -> Breach | None:
    """Demand at least one tensor that is named like a factor of PEFT."""
    if any(pair.naming.startswith("peft") for pair in subject.pairs):
        return None
    return Breach(f"no tensor is named like a factor of PEFT: they are {some(subject.specs, 3)}")


def has_only(known: Callable[[Subject, str], bool], otherwise: str) -> Check:
    """Demand that every tensor's name is known, with what to say of the others."""

    def check(subject: Subject) -> Breach | None:
        strange = [key for key in subject.specs if not known(subject, key)]
        return breach(strange, f"{len(strange)} tensors {otherwise}")

    return check


def failing(check: Callable[[str], object], paths: Iterable[str]) -> str | None:
    """Return what is wrong with the first expression or value that the check fails on."""
    for path in paths:
        try:
            check(path)
        except FormatError as error:
            return str(error)
    return None
