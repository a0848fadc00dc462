"""The time to truncate one module, from its two factors and from their product."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from adapters import Linear, factors
from processes import QUIET, busy, settle
from tables import disturbance, section, table
from torch import Tensor


def compare(rank: int, kept: int, runs: int) -> Iterator[str]:
    """Time the truncation of a single 4096 x 4096 module from its factors and from its product."""
    yield from section("One 4096 x 4096 module, in process")
    # Here and not above, so that the rest of the harness runs without the package.
    from lora_tools.linalg.svd import core
    from lora_tools.linalg.truncate import truncate
    from lora_tools.update import LowRank

    a, b = (t.half() for t in factors("one", Linear("one", 4096, 4096), rank))
    update = LowRank(a=a.numpy(), b=b.numpy(), alpha=float(rank))

    def from_factors() -> Tensor:
        heart = core(update)
        half = ("float16", "float16")
        truncate(update, heart.s, heart.left, kept, dtypes=half, alpha=float(kept), rslora=False)
        return torch.from_numpy(heart.s)

    def from_product() -> Tensor:
        u, s, vt = torch.linalg.svd(b.float() @ a.float(), full_matrices=False)
        root = s[:kept].sqrt()
        _ = (u[:, :kept] * root).half(), (root[:, None] * vt[:kept]).half()
        return s

    timed: dict[str, Callable[[], Tensor]] = {"factors": from_factors, "product": from_product}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    spectra: dict[str, Tensor] = {}
    disturbed = 0
    for turn in range(runs + 1):
        for name, function in timed.items():
            settle()
            before, start = busy() - time.process_time(), time.perf_counter()
            s = function()
            wall = time.perf_counter() - start
            if turn:
                seconds[name].append(wall)
                # The kernel counts in ticks of 10 ms: over a short time the share is noise.
                disturbed += wall > 1 and (busy() - time.process_time() - before) / wall > QUIET
            spectra[name] = s[:rank].double()
    rows = [
        (name, f"{statistics.median(times) * 1e3:.1f}", spread(times))
        for name, times in seconds.items()
    ]
    yield from table(("from", "median ms", "range ms"), rows)
    ratios = [dense / thin for thin, dense in zip(*seconds.values(), strict=True)]
    gap = ((spectra["factors"] - spectra["product"]).abs().max() / spectra["product"].max()).item()
    yield ""
    yield (
        f"product / factors: median of pairs {statistics.median(ratios):.0f}, "
        f"range {min(ratios):.0f} to {max(ratios):.0f}. {torch.get_num_threads()} threads. "
        f"Singular values differ by at most {gap:.1e} of the first."
    )
    yield from disturbance(disturbed)


def spread(times: Sequence[float]) -> str:
    """Return the range of some seconds, in milliseconds."""
    return f"{min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}"
