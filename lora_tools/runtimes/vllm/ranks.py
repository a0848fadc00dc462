"""The ranks that vLLM takes, and the one scale that it read before."""

from lora_tools.runtimes.base import Breach, Check, Subject
from lora_tools.runtimes.fields import number, ranks_of
from lora_tools.runtimes.keys import Pair
from lora_tools.runtimes.limits import RANKS
from lora_tools.runtimes.scales import config_scale


def max_rank(most: int) -> Check:
    """Demand ranks of at most ``most``, in the configuration and in the tensors."""

    def check(subject: Subject) -> Breach | None:
        ranks = [*ranks_of(subject.fields), *(pair.rank or 0 for pair in plain(subject))]
        largest = max(ranks, default=0)
        if largest <= most:
            return None
        enough = next((rank for rank in RANKS if rank >= largest), None)
        flag = f"`--max-lora-rank {enough}` would take it" if enough else "no value of it is enough"
        over = [pair.path for pair in plain(subject) if (pair.rank or 0) > most]
        return Breach(f"rank {largest} is above --max-lora-rank {most}; {flag}", over)

    return check


def slips_through(most: int) -> Check:
    """Find ranks of patterns above ``most`` where the general one is below."""

    def check(subject: Subject) -> Breach | None:
        general = subject.fields.get("r")
        over = [pair.path for pair in plain(subject) if (pair.rank or 0) > most]
        if not isinstance(general, int) or general > most or not over:
            return None
        top = max(pair.rank or 0 for pair in plain(subject))
        return Breach(f"r is {general}, but {len(over)} modules have ranks up to {top}", over)

    return check


def plain(subject: Subject) -> list[Pair]:
    """Return the pairs but for stacked experts, whose factors hold a rank for each expert."""
    stacked = subject.fields.get("target_parameters")
    return [p for p in subject.pairs if not (stacked and p.path.endswith("experts"))]


def one_scale(subject: Subject, pair: Pair) -> float | None:
    """Return the scale that every pair got, whatever the patterns say of it."""
    factor, rank = config_scale(subject), number(subject.fields.get("r"))
    if factor is None or not rank or not subject.fields.get("use_rslora"):
        return factor
    return factor * rank**0.5 if rank > 0 else None  # a negative one is another rule's to refuse
