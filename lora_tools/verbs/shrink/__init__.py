"""Shrink: lower the ranks of an adapter, with an error that is known and kept."""

from lora_tools.executors import Executor, Serial
from lora_tools.formats.manifest import Module
from lora_tools.linalg.rank import Fixed, RankPolicy
from lora_tools.runtimes import VLLM, Runtime
from lora_tools.verbs.shrink.options import Options
from lora_tools.verbs.shrink.shrunk import Shrunk
from lora_tools.verbs.shrink.source import Source
from lora_tools.verbs.shrink.survey import Offer, Survey
from lora_tools.verbs.shrink.tasks import Goal, Job, decompose
from lora_tools.verbs.shrink.units import units

__all__ = ["VLLM", "Offer", "Options", "Runtime", "Shrunk", "Source", "Survey", "shrink", "survey"]


MOST_MADE = 256_000_000
"""Bytes of finished factors that a survey may keep for a guess at what will be asked of it."""


def survey(
    adapter: Source,
    options: Options | None = None,
    executor: Executor | None = None,
    *,
    guess: RankPolicy | None = None,
) -> Survey:
    """Find the spectra of an adapter's modules. Reads every factor once.

    Memory holds one r x r matrix per module and the few modules in flight. A ``guess`` at the
    policy that will be asked for saves the second reading where it tells ranks from headers; the
    results are kept if they are small. Raises `NonFiniteError` for NaN and Inf, `PolicyError` for
    patterns that match nothing, and `UnsupportedError` for what the runtime would refuse.
    """
    options, executor = options or Options(), executor or Serial()
    options.check(adapter)
    modules = adapter.manifest.modules
    goals = [_goal(module, options, guess) for module in modules]
    if sum(goal.target.nbytes for goal in goals if goal) > MOST_MADE:
        goals = [None] * len(goals)
    jobs = [
        Job(adapter, module, options.device, goal)
        for module, goal in zip(modules, goals, strict=True)
    ]
    found = list(executor.map(decompose, jobs))
    return Survey(adapter, options, executor, units(modules, found))


def shrink(
    adapter: Source,
    policy: RankPolicy,
    options: Options | None = None,
    executor: Executor | None = None,
) -> Shrunk:
    """Lower the ranks of an adapter's modules as ``policy`` says.

    The result knows its layout at once and computes its updates when it is iterated. Raises what
    `survey` raises, and `BoundError` if a bound cannot be kept.
    """
    return survey(adapter, options, executor, guess=policy).shrink(policy)


def _goal(module: Module, options: Options, guess: RankPolicy | None) -> Goal | None:
    """Return what will become of a module if its rank follows from headers alone."""
    if not isinstance(guess, Fixed) or options.runtime:
        return None
    r = min(guess.rank, module.r) // module.groups * module.groups
    return Goal(r, options.target(module, r)) if r else None
