"""Shrink: lower the ranks of an adapter, with an error that is known and kept."""

import lora_tools.rewrite as road
from lora_tools.adapter import Adapter
from lora_tools.executors import Executor
from lora_tools.linalg.rank import RankPolicy
from lora_tools.rewrite import Rewrite, RewriteOptions, Source, Survey
from lora_tools.rewrite.source import source


def survey(
    adapter: Adapter | Source,
    options: RewriteOptions | None = None,
    executor: Executor | None = None,
    *,
    expect: RankPolicy | None = None,
) -> Survey:
    """Find the spectra of an adapter, or of one that is converted. See `rewrite.survey`."""
    of = adapter if isinstance(adapter, Source) else source(adapter)
    return road.survey(of, options, executor, expect=expect)


def shrink(
    adapter: Adapter | Source,
    policy: RankPolicy,
    options: RewriteOptions | None = None,
    executor: Executor | None = None,
) -> Rewrite:
    """Lower the ranks of an adapter's modules as ``policy`` says.

    The result knows its layout at once and computes its updates when it is iterated. Raises what
    `survey` raises, and `BoundError` if a bound cannot be kept.
    """
    return survey(adapter, options, executor, expect=policy).rewrite(policy)
