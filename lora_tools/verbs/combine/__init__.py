"""Combine: several adapters into one, the weighted sum of their updates, exactly."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from lora_tools.adapter import Adapter
from lora_tools.errors import PolicyError
from lora_tools.executors import Executor, Serial
from lora_tools.formats.base import Format
from lora_tools.linalg.rank import Fixed, RankPolicy
from lora_tools.model import Model
from lora_tools.rewrite import RewriteOptions, Source, keep, survey
from lora_tools.rewrite.selection import selected
from lora_tools.rewrite.source import Sum
from lora_tools.rules import ParametrisedRule
from lora_tools.selection import ModuleWeight, Selection
from lora_tools.verbs.combine.combination import Combination, Combined, contributions
from lora_tools.verbs.combine.dialects import dialects_of
from lora_tools.verbs.combine.extras import extras
from lora_tools.verbs.combine.measured import measured
from lora_tools.verbs.combine.sources import combined
from lora_tools.verbs.combine.weights import Weights, average, moving_average
from lora_tools.verbs.convert import translate

__all__ = [
    "Combination",
    "Combined",
    "ModuleWeight",
    "Weights",
    "average",
    "combine",
    "in_one_format",
    "moving_average",
    "sum_of",
]

KEEP = RewriteOptions(scale="keep")


def combine(
    adapters: Sequence[Adapter],
    weights: Weights | None = None,
    policy: RankPolicy | None = None,
    options: RewriteOptions = KEEP,
    executor: Executor | None = None,
    *,
    format: Format | None = None,
    rule: ParametrisedRule | None = None,
    base: Model | None = None,
) -> Combination:
    """Plan one adapter whose update is the weighted sum of those of several.

    ``weights`` are 1 if not given; the result is in ``format``, or that of the first adapter. With
    a ``rule`` it is what that makes of the weighted updates. See `sum_of` for what a policy does,
    and for what is raised.
    """
    sources = in_one_format(adapters, format, executor)
    return sum_of(sources, weights, policy, options, executor, rule=rule, base=base)


def in_one_format(
    adapters: Sequence[Adapter],
    format: Format | None = None,
    executor: Executor | None = None,
    *,
    drop: Collection[str] = (),
    paths: Model | Collection[str] = (),
) -> list[Source]:
    """Convert adapters to one format, that of the first if none is given; see `translate`.

    Where the format has several namings of one model, all get that of the first. A feature that is
    to be dropped need not be in all of them.
    """
    if not adapters:
        raise PolicyError("there is no adapter to combine")
    target = format or adapters[0].format
    sources: list[Source] = []
    known: dict[str, frozenset[str]] = {}
    for adapter in adapters:
        source = translate(adapter, target, executor, drop=drop, paths=paths)
        spoken = dialects_of(source)
        others = {
            family: min(known[family])
            for family, dialects in spoken.items()
            if family in known and not known[family] & dialects
        }
        if others:
            source = translate(adapter, target, executor, drop=drop, paths=paths, dialects=others)
        known = spoken | known
        sources.append(source)
    return sources


def sum_of(
    sources: Sequence[Source],
    weights: Weights | None = None,
    policy: RankPolicy | None = None,
    options: RewriteOptions = KEEP,
    executor: Executor | None = None,
    *,
    selection: Selection | None = None,
    rule: ParametrisedRule | None = None,
    base: Model | None = None,
) -> Combination:
    """Plan the weighted sum of sources that are in one format.

    Without a policy it is exact: the factors stand side by side, at the rank that their sum has,
    and those whose scales allow it keep their bits. With one, it is truncated optimally over all
    modules, and the error is that of the bytes written against the exact sum, or against the exact
    result of the ``rule``. One that sees dense updates needs a policy: its result has full rank.
    So has what DoRA adds to its ``base``, without which it is refused. Both are formed a module at
    a time, and sketched with extract's certificate where the policy tells how far: a rank, or the
    largest rank of the options.

    Reads every factor once, and once more when the result is iterated. Memory holds the modules in
    flight, and a matrix of the policy's rank for each module where it is known. Raises
    `FormatError` where modules do not fit, `UnsupportedError` for DoRA and for replacements that
    disagree, `PolicyError` for weights that mean nothing, and what `survey` raises.
    """
    executor = executor or Serial()
    weights = weights or Weights((1.0,) * len(sources))
    if len(weights.adapters) != len(sources):
        raise PolicyError(f"{len(weights.adapters)} weights for {len(sources)} adapters")
    selection = selection or Selection()
    whole = selected(combined(sources, weights, rule, base), selection, executor)
    if policy is None and any(isinstance(o, Sum) and o.is_dense for o in whole.origins.values()):
        what = f"what {rule.rule.name} makes" if rule else "what DoRA adds to its base"
        raise PolicyError(f"{what} has full rank").hint(
            "Give one of --rank, --energy, --max-error, --max-params, --max-size."
        )
    beside = extras(sources, weights)
    kept = tuple(extra for extra in beside.described.values() if selection.keeps(extra))
    whole = replace(whole, manifest=replace(whole.manifest, extras=kept))
    columns, every = _columns(policy, options), not isinstance(policy, Fixed)
    sums = measured(whole, executor, columns, every=every)
    rewrite = (
        keep(sums.source, executor, dtype=options.dtype, found=sums.found)
        if policy is None
        else survey(sums.source, options, executor, found=sums.found).rewrite(policy)
    )
    how = ", ".join(str(each) for each in (rule, policy) if each)
    return Combination(rewrite, beside, weights, contributions(sums), how)


def _columns(policy: RankPolicy | None, options: RewriteOptions) -> int | None:
    """Return the rank up to which decompositions are needed, if the policy tells it."""
    if not isinstance(policy, Fixed):
        return options.max_rank
    return max(policy.rank, *(rank for _, rank in options.module_ranks), 0)
