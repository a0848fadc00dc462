"""Inspect: what an adapter is, what its spectra say, and how it stands to its base."""

from collections.abc import Sequence
from dataclasses import replace

from lora_tools.adapter import Adapter
from lora_tools.consumers import Consumer, judge, subject
from lora_tools.engine import Engine, Serial
from lora_tools.model import Model
from lora_tools.ops.inspect.inspection import Inspection
from lora_tools.ops.inspect.listing import Listing, look

__all__ = ["Inspection", "Listing", "inspect", "look"]


def inspect(
    adapter: Adapter,
    *,
    spectrum: bool = False,
    base: Model | None = None,
    consumers: Sequence[Consumer] = (),
    engine: Engine | None = None,
    device: str = "cpu",
) -> Inspection:
    """Describe an adapter.

    From headers alone, without numpy or torch, unless asked for spectra (every factor is read
    once, O((out + inp) * rank**2) each) or for a comparison with a base (every adapted weight is
    read, too; implies spectra). ``consumers`` are the engines whose verdicts are wanted. NaN and
    Inf do not stop it: they are what it finds. Raises `FormatError` if the modules fit the base
    in several places. The base that the adapter names is not looked for: ``base`` is what is read.
    """
    about = subject(adapter) if consumers else None
    judgements = tuple(judge(about, consumer) for consumer in consumers if about)
    known = Inspection(adapter, base, judgements=judgements)
    if not spectrum and base is None:
        return known
    from lora_tools.ops.inspect.comparison import compare
    from lora_tools.ops.inspect.spectra import spectra

    engine = engine or Serial()
    found = spectra(adapter, engine, device)
    compared = compare(adapter, base, engine) if base else None
    return replace(known, spectra=found, comparison=compared)
