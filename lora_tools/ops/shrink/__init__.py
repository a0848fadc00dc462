"""Shrink: lower the ranks of an adapter, with an error that is known and kept."""

from collections.abc import Callable, Iterator

from lora_tools.adapter import Adapter
from lora_tools.engine import Engine, Serial
from lora_tools.linalg.rank import RankPolicy
from lora_tools.ops.shrink.options import VLLM, Consumer, Options
from lora_tools.ops.shrink.shrunk import Shrunk
from lora_tools.ops.shrink.survey import Survey
from lora_tools.ops.shrink.tasks import Decomposed, Job, decompose
from lora_tools.ops.shrink.units import units

__all__ = ["VLLM", "Consumer", "Options", "Shrunk", "Survey", "shrink", "survey"]


def survey(
    adapter: Adapter,
    options: Options | None = None,
    engine: Engine | None = None,
    watch: Callable[[Iterator[Decomposed]], Iterator[Decomposed]] = iter,
) -> Survey:
    """Find the spectra of an adapter's modules. Reads every factor once.

    ``watch`` is passed the spectra as they come, to show progress.

    Memory holds one r x r matrix per module and the few modules in flight. Raises
    `NonFiniteError` for NaN and Inf, `PolicyError` for patterns that match nothing, and
    `UnsupportedError` for what the consumer in the options would refuse.
    """
    options, engine = options or Options(), engine or Serial()
    options.check(adapter)
    jobs = [Job(adapter, module, options.device) for module in adapter.manifest.modules]
    found = list(watch(engine.map(decompose, jobs)))
    return Survey(adapter, options, engine, units(adapter.manifest.modules, found))


def shrink(
    adapter: Adapter,
    policy: RankPolicy,
    options: Options | None = None,
    engine: Engine | None = None,
) -> Shrunk:
    """Lower the ranks of an adapter's modules as ``policy`` says.

    The result knows its layout at once and computes its updates when it is iterated. Raises what
    `survey` raises, and `BoundError` if a bound cannot be kept.
    """
    return survey(adapter, options, engine).shrink(policy)
