"""Extract: the best adapter of a full fine-tune, with a certificate of how good it can be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_tools.executors import Executor, Serial
from lora_tools.files.journal import Resume, in_parts, journaled, journaled_part
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.parts import Part
from lora_tools.linalg.krylov import Precision
from lora_tools.linalg.rank import RankPolicy
from lora_tools.model import CONFIG, Model, open_model
from lora_tools.report.part import PartReport
from lora_tools.verbs.extract.extraction import Extraction
from lora_tools.verbs.extract.keep import identity, open_keep
from lora_tools.verbs.extract.options import ExtractOptions
from lora_tools.verbs.extract.plan import ExtractPlan, Item, make_plan
from lora_tools.verbs.extract.rows import ExtractReport, ExtractRow

__all__ = [
    "ExtractOptions",
    "ExtractPlan",
    "ExtractReport",
    "ExtractRow",
    "Extraction",
    "Precision",
    "extract",
    "extract_part",
    "plan",
]


def plan(
    base: str | Location | Model,
    tuned: str | Location | Model,
    options: ExtractOptions | None = None,
) -> ExtractPlan:
    """Decide what becomes of each tensor, from headers alone. Raises what `make_plan` does."""
    models = [m if isinstance(m, Model) else open_model(m) for m in (base, tuned)]
    return make_plan(models[0], models[1], options or ExtractOptions())


@contextmanager
def extract(
    plan: ExtractPlan,
    policy: RankPolicy,
    out: Path,
    executor: Executor | None = None,
    *,
    resume: bool = True,
    force: Force = False,
    seen: Callable[[Item], None] = lambda item: None,
    evict: bool = False,
) -> Iterator[Extraction]:
    """Yield an extraction whose folder becomes ``out`` when the block succeeds.

    What an interrupted run of the same extraction has finished is not computed again; with
    ``resume`` False it is removed. With ``evict``, each file that has to be fetched from the Hub is
    removed after it was last used. Raises `OutputError` if ``out`` is taken, is being written by
    another process, or was begun with other inputs, options or versions.
    """
    how: Resume = "or refuse" if resume else "never"
    private = [
        path
        for model in (plan.base, plan.tuned)
        for path in (*model.tensors.files, model.tensors.path.parent / CONFIG)
    ]
    decided = _identity(plan, policy)
    with journaled(out, decided, force=force, resume=how, sources=private) as journal:
        keep = open_keep(journal)
        yield Extraction(plan, policy, journal, keep, executor or Serial(), seen, evict)


def extract_part(
    plan: ExtractPlan,
    policy: RankPolicy,
    out: Path,
    part: Part,
    executor: Executor | None = None,
    *,
    seen: Callable[[Item], None] = lambda item: None,
    evict: bool = False,
) -> PartReport:
    """Do a part of an extraction beside ``out``, where `extract` takes it over.

    Raises what `Extraction.run` and `extract` do, and `OutputError` if the part was begun for
    another extraction.
    """
    decided = _identity(plan, policy)
    with journaled_part(out, part, decided) as journal:
        keep = open_keep(journal)
        extraction = Extraction(plan, policy, journal, keep, executor or Serial(), seen, evict)
        return extraction.run_part(part, in_parts(out, decided))


def _identity(plan: ExtractPlan, policy: RankPolicy) -> dict[str, Any]:
    settings = {**plan.options.describe(), "policy": str(policy)}
    return identity(plan.base, plan.tuned, settings)
