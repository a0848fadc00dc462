"""What PEFT demands of a configuration, and of the file what the configuration promises."""

from collections.abc import Callable

from lora_tools.errors import FormatError, some
from lora_tools.files.typed import shown
from lora_tools.formats.fused import ByExpert
from lora_tools.formats.peft.config import BY_EXPERT, LAYOUT
from lora_tools.runtimes.base import Breach, Check, Subject
from lora_tools.runtimes.checks import breach, failing
from lora_tools.runtimes.keys import PREFIX, WRAPPED, Pair


def of_lora(check: Check) -> Check:
    """Make a check of LoRA's own: other methods of PEFT are not judged."""
    return _where(_is_lora, check)


def of_sound(check: Check) -> Check:
    """Make a check that asks the configuration for ranks and targets, where they can be asked."""
    return _where(lambda subject: _is_lora(subject) and expression(subject) is None, check)


def _where(applies: Callable[[Subject], bool], check: Check) -> Check:
    return lambda subject: check(subject) if applies(subject) else None


def _is_lora(subject: Subject) -> bool:
    return subject.fields.get("peft_type") == "LORA"


def owner(pair: Pair) -> str:
    """Return the module whose rank a pair has; attention hands it down to what it wraps."""
    key_prefix = pair.key_prefix.removeprefix(PREFIX)
    return key_prefix.rpartition(f"{WRAPPED}.")[0] or pair.path


def targets(subject: Subject, pair: Pair) -> bool:
    """Whether the configuration names the pair's module, or the one that it is wrapped in."""
    peft = subject.peft
    return peft.targets(owner(pair)) or peft.targets(pair.path)


def kind(subject: Subject) -> Breach | None:
    """Demand the name of a method."""
    if subject.config is None or subject.fields.get("peft_type"):
        return None
    return Breach("adapter_config.json has no peft_type", ["peft_type"])


def method(subject: Subject) -> Breach | None:
    """Remark on methods other than LoRA."""
    named = subject.fields.get("peft_type")
    return (
        None
        if named in (None, "LORA")
        else Breach(
            f"peft_type is {named if isinstance(named, str) else shown(named)}, which is not judged"
        )
    )


def expression(subject: Subject) -> Breach | None:
    """Find patterns that cannot be compiled."""
    if not _is_lora(subject):
        return None
    patterns = {"rank_pattern": subject.peft.ranks, "alpha_pattern": subject.peft.alphas}
    for field, pattern in patterns.items():
        try:
            pattern.check()
        except FormatError as error:
            return Breach(str(error), [field])
    fault = failing(subject.peft.targets, (owner(pair) for pair in subject.pairs))
    return Breach(fault) if fault else None


@of_sound
def rank_zero(subject: Subject) -> Breach | None:
    """Find modules that get no rank."""
    peft = subject.peft
    low = [pair.path for pair in subject.pairs if peft.rank(owner(pair)) <= 0]
    if not low:
        return None
    rank = peft.rank(owner(next(pair for pair in subject.pairs if pair.path == low[0])))
    return Breach(f"the configuration gives {len(low)} modules the rank {rank}", low)


@of_lora
def missing_saved(subject: Subject) -> Breach | None:
    """Demand the tensors of `modules_to_save`."""
    names = subject.fields.get("modules_to_save")
    if not isinstance(names, list) or not names:
        return None
    if any(f".{name}." in key for name in names for key in subject.rest):
        return None
    return Breach(f"modules_to_save names {some(names)}, but the file has no tensor of them", names)


@of_lora
def grouped_experts(subject: Subject) -> Breach | None:
    """Find stacked experts whose B is in Unsloth's former order, which PEFT does not know of."""
    modules = subject.manifest.modules if subject.manifest else ()
    names = [module.name for module in modules if isinstance(module.fused, ByExpert)]
    return breach(
        names,
        f"{LAYOUT} is {BY_EXPERT!r}, which PEFT does not read: the experts of {len(names)} stacks"
        " get columns of each other's B",
    )


@of_lora
def missing_tokens(subject: Subject) -> Breach | None:
    """Demand the rows of `trainable_token_indices`."""
    if not subject.fields.get("trainable_token_indices"):
        return None
    if any("trainable_tokens" in key for key in subject.rest):
        return None
    return Breach("trainable_token_indices is set, but the file has no trainable tokens")
