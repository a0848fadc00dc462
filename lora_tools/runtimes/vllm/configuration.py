"""What vLLM demands of a configuration."""

from lora_tools.files.typed import shown
from lora_tools.runtimes.base import Breach, Subject
from lora_tools.runtimes.checks import breach, failing
from lora_tools.runtimes.fields import number

HEADS = ("classifier", "score")
"""The modules that may be saved whole."""

INITIALISERS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Those that leave the base as it is."""


def rank_zero(subject: Subject) -> Breach | None:
    """Find a rank of none."""
    general = number(subject.fields.get("r", 1))
    return Breach(f"r is {general:g}", ["r"]) if general is not None and general <= 0 else None


def pattern_zero(subject: Subject) -> Breach | None:
    """Find ranks of patterns that are none."""
    pattern = subject.peft.fields.mapping("rank_pattern").values
    low = [key for key, rank in pattern.items() if not isinstance(rank, int) or rank <= 0]
    if not low:
        return None
    return Breach(f"rank_pattern gives {low[0]} the rank {shown(pattern[low[0]])}", low)


def expression(subject: Subject) -> Breach | None:
    """Find patterns that cannot be compiled."""
    peft, paths = subject.peft, [pair.path for pair in subject.pairs]
    error = failing(peft.rank, paths) or failing(peft.alpha, paths)
    return Breach(error) if error else None


def saved(subject: Subject) -> Breach | None:
    """Find modules that were saved whole and are no head."""
    names = subject.fields.get("modules_to_save") or []
    others = [name for name in names if name not in HEADS]
    return breach(others, "modules_to_save holds more than a classifier's head")


def bias(subject: Subject) -> Breach | None:
    """Find trained biases."""
    trained = subject.fields.get("bias", "none")
    return Breach(f"bias is {shown(trained)}", ["bias"]) if trained != "none" else None


def initialiser(subject: Subject) -> Breach | None:
    """Find initialisations that alter the base."""
    start = subject.fields.get("init_lora_weights", True)
    if not isinstance(start, str) or start.lower() in INITIALISERS:
        return None
    return Breach(f"init_lora_weights is {shown(start)}: the adapter belongs to an altered base")
