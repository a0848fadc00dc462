"""Diff: how far two adapters are from each other, module by module, whatever their formats."""

from dataclasses import dataclass

from lora_tools.adapter import Adapter
from lora_tools.errors import PolicyError, some
from lora_tools.executors import Executor, Serial
from lora_tools.names import matches
from lora_tools.verbs.diff.differences import Differences
from lora_tools.verbs.diff.pairs import DiffJob, notes, pair
from lora_tools.verbs.diff.rows import DiffRow
from lora_tools.verbs.diff.tables import text
from lora_tools.verbs.diff.tasks import compare

__all__ = ["TOLERANCE", "DiffOptions", "DiffRow", "Differences", "diff", "text"]

TOLERANCE = 1e-6
"""A few roundings of float32: what re-factoring or re-scaling costs, and a cast does not keep."""


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What to compare, and from when on numbers differ."""

    tolerance: float = TOLERANCE
    """The relative difference up to which modules and tensors count as the same."""
    include: tuple[str, ...] = ()
    """Patterns of the modules and other tensors to compare; none: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of those to leave out."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise PolicyError(f"a tolerance of {self.tolerance} means nothing")

    def selects(self, job: DiffJob) -> bool:
        """Whether a pair is to be compared."""
        fits = [
            [matches(pattern, name) for pattern in patterns for name in job.names]
            for patterns in (self.include, self.exclude)
        ]
        return (not self.include or any(fits[0])) and not any(fits[1])


def diff(
    a: Adapter, b: Adapter, options: DiffOptions | None = None, executor: Executor | None = None
) -> Differences:
    """Compare the updates of two adapters, and all else that their files hold, from the factors.

    Reads every tensor once and keeps a few numbers of each; memory is the modules in flight.
    Raises `NonFiniteError` with the tensor's name for NaN and Inf, `FormatError` where B's names
    fit A's in several ways, and `PolicyError` for patterns that match nothing.
    """
    options, executor = options or DiffOptions(), executor or Serial()
    jobs, swaps = pair(a, b, options.device)
    patterns = (*options.include, *options.exclude)
    names = [name for job in jobs for name in job.names]
    idle = [pattern for pattern in patterns if not any(matches(pattern, n) for n in names)]
    if idle:
        raise PolicyError(f"nothing in {a.path} or {b.path} matches {some(idle)}").hint(
            f"Their modules are {some(names)}."
        )
    chosen = [job for job in jobs if options.selects(job)]
    rows = tuple(executor.map(compare, chosen))
    return Differences(
        (str(a.path), str(b.path)),
        (a.manifest.format, b.manifest.format),
        (a.base_model, b.base_model),
        options.tolerance,
        rows,
        notes(a, b, len(jobs) - len(chosen), swaps),
    )
