"""What llama.cpp's loader demands of a GGUF file."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_tools.architectures.dialects import modules_of
from lora_tools.runtimes.base import Breach, Rule, Subject, Verdict
from lora_tools.runtimes.checks import breach

KIND = {"general.type": "adapter", "adapter.type": "lora"}
A, B, NORM = ".lora_a", ".lora_b", "_norm.weight"


class LoadedFactors(NamedTuple):
    """The shapes of the two factors of a weight, as far as the file has them."""

    weight: str
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None


def _factors(subject: Subject) -> Iterator[LoadedFactors]:
    keys = (key for key in subject.specs if key.endswith((A, B)))
    for weight in dict.fromkeys(key[: -len(A)] for key in keys):
        found = (subject.specs.get(weight + end) for end in (A, B))
        yield LoadedFactors(weight, *(spec.shape if spec else None for spec in found))


def _kind(subject: Subject) -> Breach | None:
    wrong = [key for key, value in KIND.items() if subject.metadata.get(key) != value]
    return breach(wrong, "its header does not say that it is an adapter, and a LoRA")


def _names(subject: Subject) -> Breach | None:
    strange = [key for key in subject.specs if not key.endswith((A, B, NORM))]
    return breach(strange, f"{len(strange)} tensors are neither lora_a nor lora_b")


def _lone(subject: Subject) -> Breach | None:
    lone = [each.weight for each in _factors(subject) if each.a is None or each.b is None]
    return breach(lone, f"{len(lone)} weights lack a factor")


def _ranks(subject: Subject) -> Breach | None:
    wrong = []
    for weight, a, b in _factors(subject):
        if a is None or b is None:
            continue
        # Stored row by token, so that rows can be looked up.
        table = weight.removesuffix(".weight") in modules_of("embedding", "gguf")
        if len(a) != 2 or len(b) != 2 or a[1 if table else 0] != b[1]:
            wrong.append(weight)
    return breach(wrong, f"the factors of {len(wrong)} weights are not matrices of one rank")


def _norms(subject: Subject) -> Breach | None:
    norms = [key for key in subject.specs if key.endswith(NORM)]
    return breach(norms, f"{len(norms)} norms are ignored")


RULES = (
    Rule(
        "kind",
        Verdict.REFUSED,
        "The header must say general.type adapter and adapter.type lora.",
        _kind,
        final=True,
    ),
    Rule(
        "names",
        Verdict.REFUSED,
        "Tensors must end in .lora_a or .lora_b, norms aside.",
        _names,
    ),
    Rule("incomplete", Verdict.REFUSED, "Every factor needs its other one.", _lone),
    Rule(
        "ranks",
        Verdict.REFUSED,
        "Factors must be matrices of one rank, those of token_embd with A row by token.",
        _ranks,
    ),
    Rule("norms", Verdict.LOADS, "Norms are ignored.", _norms),
)
"""The shapes of the base's own weights are checked, too, which no adapter's file says."""
