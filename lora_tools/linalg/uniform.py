"""One rank for a whole file, for runtimes that take no other."""

from collections.abc import Sequence
from dataclasses import replace

from lora_tools.errors import BoundError
from lora_tools.linalg.rank import NOTHING, Fixed, MaxBytes, MaxParams, RankPolicy, Rest
from lora_tools.linalg.spectrum import Spectrum


def uniform(
    policy: RankPolicy, spectra: Sequence[Spectrum], sizes: Sequence[int], rest: Rest = NOTHING
) -> tuple[int, list[int]]:
    """Return one rank for the whole file, of the ``sizes`` allowed, and the rank of each module.

    Modules of a smaller rank are padded to the common one, and pay for it. A bound on error takes
    the smallest size that keeps it; a budget takes the largest that it can pay.
    """
    if isinstance(policy, Fixed):
        ranks = policy.ranks(spectra)
        sizes = [size for size in sizes if size >= max(ranks)]
        if not sizes:
            raise BoundError(f"rank {max(ranks)} is more than the largest rank allowed")
        return min(sizes), ranks
    refusal = BoundError("no rank that is allowed for all is large enough")
    for size in sorted(sizes, reverse=isinstance(policy, MaxParams | MaxBytes)):
        fitting = [[k for k in x.choices if k <= size] for x in spectra]
        if not all(fitting):
            continue
        try:
            padded = [
                replace(x, choices=(k[-1],), cost=x.cost * size / max(k[-1], 1))
                for x, k in zip(spectra, fitting, strict=True)
            ]
            return size, policy.ranks(padded, rest)
        except BoundError as error:
            refusal = error
    raise refusal
