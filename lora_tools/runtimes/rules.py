"""Rules that the tables of several runtimes have, each with what the runtime has of its own."""

from collections.abc import Callable

from lora_tools.runtimes.base import Check, Rule, Verdict
from lora_tools.runtimes.checks import has_file
from lora_tools.runtimes.fields import KINDS, has_config, has_fields, sets, typed
from lora_tools.runtimes.fixes import plainly_named

CONFIG = Rule(
    "config",
    Verdict.REFUSED,
    "adapter_config.json must lie beside the tensors.",
    has_config,
    final=True,
)

DORA = Rule(
    "dora", Verdict.REFUSED, "DoRA is not supported.", sets("use_dora", "DoRA is not supported")
)


def fields(*names: str) -> Rule:
    """Demand that the configuration has fields."""
    *most, last = names
    listed = f"{', '.join(most)} and {last}" if most else last
    text = f"The configuration must have {listed}."
    return Rule("fields", Verdict.REFUSED, text, has_fields(*names))


def tensor_file(text: str, *names: str) -> Rule:
    """Demand one of the files in which the tensors are looked for."""
    return Rule("tensor-file", Verdict.REFUSED, text, has_file(*names), final=True)


def types(
    *names: str,
    text: str = "Numbers must be numbers, names names, and patterns pairs of them.",
    of: Callable[[Check], Check] = lambda check: check,
) -> Rule:
    """Demand that fields, or all whose kinds are known, hold what they are for.

    ``of`` narrows the demand to some adapters.
    """
    return Rule("types", Verdict.REFUSED, text, of(typed(*(names or KINDS))), final=True)


def keys(text: str, check: Check) -> Rule:
    """Demand names of tensors that are all known; fix those that hold the adapter's name."""
    return Rule("keys", Verdict.REFUSED, text, check, plainly_named(check))
