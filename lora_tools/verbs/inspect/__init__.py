"""Inspect: what an adapter is, what its spectra say, and how it stands to its base."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_tools.adapter import Adapter
from lora_tools.executors import Executor, Serial
from lora_tools.model import Model
from lora_tools.verbs.inspect.inspection import Inspection
from lora_tools.verbs.inspect.listing import Listing, read_or_list, verdicts

if TYPE_CHECKING:
    from lora_tools.runtimes import Runtime

__all__ = ["Inspection", "Listing", "inspect", "read_or_list"]


def inspect(
    adapter: Adapter,
    *,
    spectrum: bool = False,
    base: Model | None = None,
    runtimes: "Sequence[Runtime]" = (),
    executor: Executor | None = None,
    device: str = "cpu",
) -> Inspection:
    """Describe an adapter.

    From headers alone, without numpy or torch, unless asked for spectra (every factor is read
    once, O((out + inp) * rank**2) each) or for a comparison with a base (every adapted weight is
    read, too; implies spectra). ``runtimes`` are the runtimes whose verdicts are wanted. NaN and
    Inf do not stop it: they are what it finds. Raises `FormatError` if the modules fit the base
    in several places. The base that the adapter names is not looked for: ``base`` is what is read.
    """
    known = Inspection(adapter, base, judgements=verdicts(adapter, runtimes))
    if not spectrum and base is None:
        return known
    from lora_tools.verbs.inspect.comparison import compare
    from lora_tools.verbs.inspect.spectra import spectra

    executor = executor or Serial()
    found = spectra(adapter, executor, device)
    compared = compare(adapter, base, executor) if base else None
    return replace(known, spectra=found, comparison=compared)
